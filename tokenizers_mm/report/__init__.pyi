from tokenizers_mm.report.cells import Cell as Cell, Share as Share, WithNote as WithNote
from tokenizers_mm.report.chart import Points as Points
from tokenizers_mm.report.page import Page as Page
from tokenizers_mm.report.picture import Pixels as Pixels, false_colour as false_colour
