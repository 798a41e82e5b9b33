"""Faster R-CNN as in appendix B of the paper (Table 8): another task for the training loop."""
