"""Faster R-CNN on the networks of the paper: from images and boxes in COCO's format to COCO's AP (Table 8)."""
