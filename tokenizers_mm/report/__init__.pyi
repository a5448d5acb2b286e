from tokenizers_mm.report.chart import Points as Points
from tokenizers_mm.report.page import Cell as Cell, Page as Page, Share as Share, WithNote as WithNote
from tokenizers_mm.report.picture import Pixels as Pixels, false_colour as false_colour
