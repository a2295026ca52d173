"""Score frozen features by a ridge classifier and nearest neighbours on their cells.

Protocol: the logistic and k-NN evaluation of facebookresearch/capi (eval_segmentation.py), with three differences:
ridge regression in closed form instead of logistic regression, images keep their aspect ratio, and scores are counted
at the size of the labels instead of the network's. All random choices follow from the seed.
"""
