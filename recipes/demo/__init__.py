"""The demo: every stage of the way on real images, measured, on one page."""
