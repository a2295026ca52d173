"""What frozen features know about classes: a ridge classifier and nearest neighbours on their cells.

Protocol: the logistic and k-NN evaluation of facebookresearch/capi (eval_segmentation.py), with three differences: the
closed form of ridge regression instead of logistic regression, images keep their aspect, and scores are counted in the
labels' own size instead of the network's. Every number follows from the seed.
"""
