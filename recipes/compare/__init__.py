"""Tokenizers side by side on the same images: measured, drawn and written as one page."""
