"""Config keys that this project adds to detectron2's; the keys of a method are in the method's file.

Each key has a comment. "Inferred" marks a value that we chose, because neither the paper's text nor the released code
gives it.
"""

from detectron2.config import CfgNode

__all__ = ["add_densesiam_config", "all_keys"]


def add_densesiam_config(cfg: CfgNode) -> None:
    """Add this project's keys to a detectron2 config and register everything it provides.

    It also registers meta-architectures, heads, backbones and the built-in datasets. It can be called twice if no key
    was changed in between.

    Args:
        cfg: a config from ``detectron2.config.get_cfg()``, changed in place.
    """
    from detectron2.projects.deeplab import add_deeplab_config

    import densesiam_d2.data
    import densesiam_d2.modeling

    add_deeplab_config(cfg)  # dilated ResNet, poly schedule, category-balanced crop
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"  # pretraining uses this stem; deeplab's default is another
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]

    _add_dataset_keys(cfg)
    _add_input_keys(cfg)
    _add_model_keys(cfg)
    _add_sem_seg_keys(cfg)
    _add_solver_and_test_keys(cfg)
    _add_run_keys(cfg)
    for method in densesiam_d2.modeling.METHODS + densesiam_d2.modeling.BASELINES:
        method.add_config(cfg)


def all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Return the full names of all keys of a config, including those of nodes."""
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += all_keys(value, f"{prefix}{name}.")
    return keys


def _add_dataset_keys(cfg: CfgNode) -> None:
    # Kinds of findings about labels, such as "boxes-xyxy", that cause neither an error nor a warning. The message of a
    # finding ends with its kind.
    cfg.DATASETS.ACCEPT = ()


def _add_input_keys(cfg: CfgNode) -> None:
    # Photometric distortion in supervised segmentation (ColorAugSSDTransform of detectron2.projects.point_rend).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Value of 16-bit images that becomes 255 (white); higher values become 255 too. 4095 for 12-bit images in 16-bit
    # files.
    cfg.INPUT.WHITE_LEVEL = 65535
    # Folders with more images are indexed once in OUTPUT_DIR, shared by all processes and kept for --resume.
    cfg.DATALOADER.INDEX_ABOVE = 1_000_000

    ssl = cfg.INPUT.SSL = CfgNode()
    # Side of each square view, in pixels.
    ssl.VIEW_SIZE = 224
    # 0: views are taken from the whole image. Above 0: views are taken from its central square only; with COLOR_FIRST
    # this square is first resized to this side in pixels. The segmentation recipe uses 640.
    ssl.PRE_CROP = 0
    # Content of each view: "crop" (a random resized crop) or "full" (the whole image, never flipped). The second can be
    # "same": then view 1 is a crop that is neither flipped nor changed in its colours, and view 2 the same crop with
    # both changes (IIC).
    ssl.VIEWS = ["crop", "crop"]
    # Range from which the size of a crop is drawn uniformly, in the unit that CROP_SCALE_OF names.
    ssl.CROP_SCALE = [0.2, 1.0]
    # CROP_SCALE is a fraction of the image's "area" (random resized crop) or of its short "side" (the released
    # segmentation recipe), or the side of the crop in "pixels" of the image, at most its short side (IIC).
    ssl.CROP_SCALE_OF = "area"
    # Range of width/height of a crop, drawn log-uniformly.
    ssl.CROP_ASPECT = [0.75, 4.0 / 3.0]
    # The second view is drawn again, up to 10 times, until this fraction of its area lies inside the first; 0 = off.
    # Inferred (SlotCon's data/transforms.py has the same rule).
    ssl.MIN_OVERLAP = 0.01
    # True: change the colours of the whole (pre-cropped) image before the crop (the released segmentation code). False:
    # change the colours of the view after the crop (all other recipes).
    ssl.COLOR_FIRST = False
    # True: the worker only draws the changes of colours, and the model makes them on MODEL.DEVICE for whole batches.
    # Pixels differ by a grey level per change. It is for GPUs: on a CPU the work is only moved, and takes longer. Not
    # with COLOR_FIRST or PATCH_GRID, which need the changed colours in the worker.
    ssl.COLOR_ON_DEVICE = False
    # Interpolation when views are resized: "bilinear" or "bicubic". CROP_ANTIALIAS False turns antialiasing off for
    # "crop" views (BYOL, SimCLR, and the released segmentation code, which crops on the GPU).
    ssl.INTERPOLATION = "bilinear"
    ssl.CROP_ANTIALIAS = True
    # What to do with a crop that is wider or higher than the image. False: draw again. True: cut it to fit (BYOL).
    ssl.CROP_CLIP = False
    # Probability of a horizontal flip of a "crop" view. With SAME_FLIP the whole image is flipped before both views are
    # taken, "full" views too, so that no view is flipped relative to the other (ReSim).
    ssl.FLIP_PROB = 0.5
    ssl.SAME_FLIP = False
    # Strengths of brightness, contrast, saturation (factor in [1-s, 1+s]) and hue (shift in [-s, s] turns).
    ssl.JITTER = [0.4, 0.4, 0.4, 0.1]
    # How brightness changes: "multiply" (by the factor above) or "add" (a shift in [-s, s] of pixels in [0, 1]; BYOL).
    ssl.JITTER_BRIGHTNESS = "multiply"
    # Probability of the colour jitter.
    ssl.JITTER_PROB = 0.8
    # False: one draw decides for all four operations. True: one draw per operation (the released segmentation recipe).
    ssl.JITTER_INDEPENDENT = False
    # False: always brightness, contrast, saturation, hue (the released segmentation recipe).
    ssl.JITTER_RANDOM_ORDER = True
    # Probability of turning a view grey.
    ssl.GRAYSCALE_PROB = 0.2
    # Probability of a Gaussian blur per view, and the range from which its sigma is drawn, in pixels. If a drawn sigma
    # is negative, its absolute value is used.
    ssl.BLUR_PROB = [0.5, 0.5]
    ssl.BLUR_SIGMA = [0.1, 2.0]
    # True: blur a view before colour jitter and grey (ReSim); False: after them.
    ssl.BLUR_FIRST = False
    # Per-view probability of solarisation (threshold 128).
    ssl.SOLARIZE_PROB = [0.0, 0.0]
    # Above 0: each view is also cut into PATCH_GRID x PATCH_GRID cells. A square of PATCH_SIZE pixels at a random place
    # in each cell is a patch; the patches of a view are in random order (DetCo).
    ssl.PATCH_GRID = 0
    ssl.PATCH_SIZE = 64
    # True: an image has the same two views in every epoch (the released segmentation code).
    ssl.FREEZE_VIEWS = False


def _add_model_keys(cfg: CfgNode) -> None:
    # Stop when a backbone tensor is not filled by MODEL.WEIGHTS, or the file's metadata contradicts the config. False
    # turns both into warnings.
    cfg.MODEL.WEIGHTS_STRICT = True
    # Names of the classes in the order of the model's outputs. train_net.py sets it from DATASETS.TRAIN or, with
    # --eval-only, from the weights. A test set with another order of classes is scored by class names.
    cfg.MODEL.CLASS_NAMES = []

    # With MODEL.BACKBONE.NAME build_torchvision_backbone or build_torchvision_fpn_backbone: the name of a CNN in
    # torchvision.models, and the kind of batch norm that replaces its own ("" keeps it; other norms stay).
    cfg.MODEL.TORCHVISION = CfgNode()
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    cfg.MODEL.TORCHVISION.NORM = "SyncBN"

    ssl = cfg.MODEL.SSL = CfgNode()
    # Backbone feature that the projectors get.
    ssl.IN_FEATURE = "res5"
    # Stages of the backbone ("stem", "res2", "res3", "res4", "res5") whose blocks keep only their inputs for the
    # backward and compute the rest again: less memory, more time, the same result.
    ssl.CHECKPOINT_STAGES = []
    # Norm in all projectors and predictors. In several CPU processes another norm of the whole batch replaces
    # "SyncBN", which the log names.
    ssl.NORM = "SyncBN"
    # Initialise the scale of the last norm of each residual branch with 0, as SimSiam does. For ResNets of detectron2
    # and torchvision; other backbones stay as they are.
    ssl.ZERO_INIT_RESIDUAL = True


def _add_sem_seg_keys(cfg: CfgNode) -> None:
    # detectron2's keys keep their meaning: NAME, IN_FEATURES, NUM_CLASSES (clusters), CONVS_DIM, COMMON_STRIDE, NORM,
    # LOSS_WEIGHT (of the pseudo-label loss), IGNORE_VALUE.
    pl = cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL = CfgNode()
    # Outputs of the auxiliary over-clustering classifier; 0 = none.
    pl.AUX_CLASSES = 128
    # Clusters of the main classifier in training, of which evaluation makes NUM_CLASSES by merging those that the two
    # views of a point mix up most; 0 = NUM_CLASSES clusters, and nothing is merged. With DenseSiamSegmentor only.
    pl.MERGE_FROM = 0
    # Number of conv-norm-ReLU blocks before each classifier's last convolution.
    pl.NUM_PROJ_CONVS = 2
    # Multiply each pixel's pseudo-label loss by the frequency of its label (the released rebalancing).
    pl.REBALANCE = True
    # Scale the targets such that all clusters get about the same share of the batch's points: those of the soft
    # cross-entropy, and the pseudo labels. Three iterations of Sinkhorn and Knopp as in SwAV, at the temperature
    # MODEL.DENSESIAM.PIXEL.TARGET_TEMPERATURE. Not in the paper. REBALANCE then does little but lower the loss. With
    # DenseSiamSegmentor only.
    pl.SINKHORN = False
    # Weight of the soft cross-entropy between views. It is divided between the main and the auxiliary classifier in the
    # ratio log(AUX_CLASSES) : log(NUM_CLASSES), as released ("auto").
    pl.SIMILARITY_WEIGHT = 1.0
    # Normalise each backbone feature to length 1 over its channels before the decoder.
    pl.NORMALIZE = False
    # End each classifier's projector with a batch norm, so that no cluster dies out (as released).
    pl.LOGIT_NORM = True
    # Predict the other view's logits by a predictor (as released); False compares the logits themselves.
    pl.PREDICTOR = True
    # "random", or "kmeans": the decoder starts as a principal component analysis of the backbone's features, and the
    # classifiers as k-means clusters of its output. "kmeans" needs NORMALIZE True, LOGIT_NORM False, NUM_PROJ_CONVS 0.
    pl.START = "random"

    # FCNSemSegHead (supervised transfer): convolutions, their dilation, concatenation of the input before the last one,
    # dropout, and an auxiliary head on another feature ("" = none).
    fcn = cfg.MODEL.SEM_SEG_HEAD.FCN = CfgNode()
    fcn.NUM_CONVS = 2
    fcn.DILATION = 1
    fcn.CONCAT_INPUT = True
    fcn.DROPOUT = 0.1
    fcn.AUX_FEATURE = "res4"
    fcn.AUX_CONVS_DIM = 256
    fcn.AUX_LOSS_WEIGHT = 0.4
    fcn.ALIGN_CORNERS = True


def _add_solver_and_test_keys(cfg: CfgNode) -> None:
    # Autocast type under SOLVER.AMP.ENABLED: "fp16" (CUDA, with loss scaling) or "bf16" (CUDA or CPU).
    cfg.SOLVER.AMP.PRECISION = "fp16"
    # "SGD", "AdamW" or "LARS". SGD and LARS read MOMENTUM, SGD alone reads NESTEROV.
    cfg.SOLVER.OPTIMIZER = "SGD"
    adamw = cfg.SOLVER.ADAMW = CfgNode()
    adamw.BETAS = [0.9, 0.999]
    adamw.EPS = 1e-8
    # LARS uses neither weight decay nor scaling for parameters of one dimension (biases, norms). With LR_IN_MOMENTUM
    # the step including the learning rate is added to the momentum, as in SimCLR; False adds only the scaled gradient,
    # as in BYOL, SlotCon and PixPro. The results differ while the learning rate changes.
    lars = cfg.SOLVER.LARS = CfgNode()
    lars.TRUST_COEFFICIENT = 0.001
    lars.EPS = 0.0
    lars.LR_IN_MOMENTUM = False
    # Keep BASE_LR during the whole training for the modules in the method's fixed_lr_modules, which are its predictors
    # (SimSiam's --fix-pred-lr).
    cfg.SOLVER.FIX_PREDICTOR_LR = True
    # Factor on the learning rate of the backbone; below 1 it changes less than the heads on top of it.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Factor on the learning rate of the last layers of a supervised head: box classifier and regressor, mask predictor,
    # predictors of a segmentation head. They always start from random weights, so with few labels a larger rate helps
    # (CutLER's COCO-Semisupervised configs have 4).
    cfg.SOLVER.LAST_LAYERS_LR_FACTOR = 1.0
    # Split a batch of IMS_PER_BATCH images into this many equal parts, which go through the model one after the other,
    # and average their gradients before the optimizer's step, so that only the activations of one part need memory.
    # Learning rate, schedule and progress stay as they are; teacher and queue change once per batch. But batch norm
    # uses the statistics of each part, and moves its running statistics with each, as with smaller batches. Means over
    # what is valid, such as images whose views overlap, and the frequencies of pseudo labels are also of a part. Logged
    # losses are means over the parts; ssl/* metrics are of the last part. Methods that compare the images of a batch
    # with each other refuse it.
    cfg.SOLVER.ACCUMULATE = 1
    # Length of the training and of its warm-up in epochs of DATASETS.TRAIN; 0 = use MAX_ITER and WARMUP_ITERS. With
    # EPOCHS, STEPS are fractions of the training in (0, 1). SOLVER.MAX_ITER on the command line sets EPOCHS to 0.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    # Of the numbered checkpoints, keep the newest KEEP_LAST (0 = all), and never delete those whose number of
    # iterations is a multiple of KEEP_EVERY (0 = off).
    cfg.SOLVER.CHECKPOINT_KEEP_LAST = 0
    cfg.SOLVER.CHECKPOINT_KEEP_EVERY = 0

    # How semantic evaluation matches predicted labels with classes: "none" (they are classes), or for clusters
    # "hungarian" (one-to-one, most pixels), "hungarian_iou" (one-to-one, largest sum of IoUs) or "majority" (each
    # cluster to the class of most of its pixels; for more clusters than classes). It gives the scores without a suffix,
    # such as mIoU; mIoU_hungarian, mIoU_majority and so on are always computed for clusters.
    cfg.TEST.SEM_SEG_MATCHING = "none"
    # Data set on which clusters are matched with classes before the test sets are scored; "" = on each test set itself.
    cfg.TEST.SEM_SEG_MATCHING_FIT = ""
    # A small labelled set that is scored like a test set every PERIOD iterations of training, as monitor/mIoU and so
    # on, with clusters matched on itself; "" = off. The labels do not influence the training, except by
    # TEST.BEST_METRIC "monitor/mIoU".
    cfg.TEST.MONITOR = CfgNode()
    cfg.TEST.MONITOR.DATASET = ""
    cfg.TEST.MONITOR.PERIOD = 500
    # Labelled sets on which the backbone of a pretraining is scored: every PERIOD iterations a ridge classifier of its
    # frozen features is fitted on TRAIN and scored on TEST, as probe/mIoU and probe/pACC (see tools.probe); "" = off.
    # The labels do not influence the training, except by TEST.BEST_METRIC "probe/mIoU" and TEST.PATIENCE. FEATURES and
    # SIZE are the options of tools.probe.
    cfg.TEST.PROBE = CfgNode()
    cfg.TEST.PROBE.TRAIN = ""
    cfg.TEST.PROBE.TEST = ""
    cfg.TEST.PROBE.PERIOD = 2000
    cfg.TEST.PROBE.FEATURES = ["res3", "res4", "res5"]
    cfg.TEST.PROBE.SIZE = 320
    # What label-free segmentation returns in evaluation: "logits", as detectron2's evaluators expect, or "labels",
    # which this project's evaluators and tools.segment accept too. Measured at 480 x 640 on a CPU: labels take 0.57 of
    # the time and 9 MiB instead of 585 with 500 clusters, 1.15 of the time and at most 13 MiB instead of 24 with 27.
    cfg.TEST.SEM_SEG_OUTPUT = "logits"
    # Evaluate segmentation on a centre crop of this side, after resizing the short side to it; 0 = whole images.
    cfg.TEST.CENTER_CROP_SIZE = 0
    # Sliding-window inference of SlidingSemanticSegmentor: window side and stride in pixels; 0 = whole images.
    cfg.TEST.SLIDE_WINDOW = 0
    cfg.TEST.SLIDE_STRIDE = 0
    # The model with the best value so far is saved as model_best.pth, in a pretraining also its backbone, as
    # backbone_best.pkl and .safetensors. "" = off. It is a score, such as "segm/AP", "monitor/mIoU" or "probe/mIoU", or
    # a number that training logs, such as "ssl/view_agreement", averaged from one comparison to the next. The highest
    # value is the best; "-" before the name makes it the lowest. Scores are compared when they are computed, other
    # numbers every TEST.EVAL_PERIOD iterations, or SOLVER.CHECKPOINT_PERIOD if that is 0.
    cfg.TEST.BEST_METRIC = ""
    # End the training after this many comparisons in a row without a new best value of TEST.BEST_METRIC; 0 = never.
    cfg.TEST.PATIENCE = 0


def _add_run_keys(cfg: CfgNode) -> None:
    run = cfg.RUN = CfgNode()
    # Resume even if data, batch size, seed or model are not those of the checkpoint.
    run.ALLOW_MISMATCH = False
    # Stop after this many steps in a row with a loss or gradient that is not finite. All processes drop such a step.
    run.MAX_DROPPED_STEPS = 10
    # Pretraining stops if more than this share of a process's last 1,000 reads were of unreadable files.
    run.MAX_UNREADABLE = 0.1
    # Stop when the embeddings have collapsed; False only warns.
    run.STOP_ON_COLLAPSE = False
    # After this many seconds without a finished step, every process prints its stacks and exits; 0 = never. The value
    # must allow for scoring: the step after an evaluation waits until the main process has computed the scores.
    run.WATCHDOG_SECONDS = 900
    # Seconds that processes wait for each other in one operation. Keep it above WATCHDOG_SECONDS, so that the clearer
    # message of the watchdog comes first.
    run.DIST_TIMEOUT_SECONDS = 1800
