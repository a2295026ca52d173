"""Score frozen features: ridge and nearest neighbours on their cells, a linear head by SGD, in-context retrieval.

Protocol of ``run.py``: the logistic and k-NN evaluation of facebookresearch/capi (eval_segmentation.py), with three
differences: ridge regression in closed form instead of logistic regression, images keep their aspect ratio, and scores
are counted at the size of the labels instead of the network's. ``linear.py`` and ``retrieval.py`` name their own. All
random choices follow from the seed.
"""
