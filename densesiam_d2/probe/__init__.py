"""Score frozen features: ridge and nearest neighbours on their cells, a linear head by SGD, in-context retrieval.

Protocol of ``run.py``: the logistic and k-NN evaluation of facebookresearch/capi (eval_segmentation.py), for CNNs.
Differences:

- Ridge regression in closed form takes the place of logistic regression.
- A neighbour is a cell with its most frequent class (there: a patch with the labels of all its pixels), from a random
  sample of the training cells, by cosine; every k asked for is reported (there: k and the distance are chosen on a
  tenth of the training images).
- Images keep their aspect ratio and are resized bilinearly, to a short side of 320 pixels by default (there: squares of
  224, bicubic).
- Scores of cells are enlarged bilinearly to the size of the labels, and counted there (there: each patch has one class,
  counted at the network's size).

``linear.py`` and ``retrieval.py`` name their own. All random choices follow from the seed.
"""
