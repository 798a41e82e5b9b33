"""Faster R-CNN on the networks of the paper, as in appendix B: from images and boxes in COCO's format to Table 8."""
