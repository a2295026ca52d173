"""Config keys of this project, on top of detectron2's own.

One comment per key. A key whose value is our choice, because the paper's text or the released code does not settle it,
is marked "inferred".
"""

from detectron2.config import CfgNode

__all__ = ["add_densesiam_config", "all_keys"]


def add_densesiam_config(cfg: CfgNode) -> None:
    """Add this project's keys to a detectron2 config and register everything it provides.

    Registered as a side effect: meta-architectures, heads, backbones and the built-in datasets. Calling it twice is
    harmless as long as no key was changed in between.

    Args:
        cfg: a config from ``detectron2.config.get_cfg()``, changed in place.
    """
    from detectron2.projects.deeplab import add_deeplab_config

    import densesiam_d2.data
    import densesiam_d2.modeling  # noqa: F401  both are imported for what they register

    add_deeplab_config(cfg)  # dilated ResNet, poly schedule, category-balanced crop
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"  # deeplab's own default is another stem than pretraining uses
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]

    _add_dataset_keys(cfg)
    _add_input_keys(cfg)
    _add_model_keys(cfg)
    _add_densesiam_keys(cfg)
    _add_sem_seg_keys(cfg)
    _add_solver_and_test_keys(cfg)
    _add_run_keys(cfg)


def all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Return the full names of all keys of a config, nodes included."""
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += all_keys(value, f"{prefix}{name}.")
    return keys


def _add_dataset_keys(cfg: CfgNode) -> None:
    # Kinds of findings about labels, such as "boxes-xyxy", that neither stop a run nor are warned of. The message of a
    # finding ends in its kind.
    cfg.DATASETS.ACCEPT = ()


def _add_input_keys(cfg: CfgNode) -> None:
    # Photometric distortion in supervised segmentation (ColorAugSSDTransform of detectron2.projects.point_rend).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Value of a 16-bit pixel that becomes 255, as higher ones do; 4095 for pictures of 12 bits in 16-bit files.
    cfg.INPUT.WHITE_LEVEL = 65535
    # A folder: of more images than this is listed once, into an index in OUTPUT_DIR that all processes share and
    # --resume keeps.
    cfg.DATALOADER.INDEX_ABOVE = 1_000_000

    ssl = cfg.INPUT.SSL = CfgNode()
    # Side of each square view, in pixels.
    ssl.VIEW_SIZE = 224
    # Above 0, views are taken from the central square only; COLOR_FIRST resizes it to this side, in pixels, first. The
    # segmentation recipe: 640.
    ssl.PRE_CROP = 0
    # What each view shows: "crop" (a random resized crop) or "full" (the whole image, never flipped).
    ssl.VIEWS = ["crop", "crop"]
    # Range from which the size of a crop is drawn uniformly, as a fraction of the image's area or side.
    ssl.CROP_SCALE = [0.2, 1.0]
    # What CROP_SCALE measures: "area" (random resized crop) or "side" (the released segmentation recipe).
    ssl.CROP_SCALE_OF = "area"
    # Range of width/height of a crop, drawn log-uniformly.
    ssl.CROP_ASPECT = [0.75, 4.0 / 3.0]
    # The second view is redrawn up to 10 times until this fraction of its area lies inside the first; 0 = off. Inferred
    # (the rule is SlotCon's, data/transforms.py there).
    ssl.MIN_OVERLAP = 0.01
    # Change colours of the whole (pre-cropped) image before any crop, as released for segmentation, instead of after it
    # at the size of the view, as everywhere else.
    ssl.COLOR_FIRST = False
    # Resampling of views: "bilinear" or "bicubic", both antialiased; CROP_ANTIALIAS False leaves that out of "crop"
    # views, as the released segmentation code does, which crops on the GPU.
    ssl.INTERPOLATION = "bilinear"
    ssl.CROP_ANTIALIAS = True
    # Probability of a horizontal flip of a "crop" view.
    ssl.FLIP_PROB = 0.5
    # Strengths of brightness, contrast, saturation (factor in [1-s, 1+s]) and hue (shift in [-s, s] turns).
    ssl.JITTER = [0.4, 0.4, 0.4, 0.1]
    # Probability of the colour jitter.
    ssl.JITTER_PROB = 0.8
    # False: one draw decides for all four operations. True: one draw per operation (the released segmentation recipe).
    ssl.JITTER_INDEPENDENT = False
    # False: always brightness, contrast, saturation, hue (the released segmentation recipe).
    ssl.JITTER_RANDOM_ORDER = True
    # Probability of turning a view grey.
    ssl.GRAYSCALE_PROB = 0.2
    # Per-view probability of a Gaussian blur, and the range of its sigma in pixels; of negative numbers the magnitude
    # counts.
    ssl.BLUR_PROB = [0.5, 0.5]
    ssl.BLUR_SIGMA = [0.1, 2.0]
    # Per-view probability of solarisation (threshold 128).
    ssl.SOLARIZE_PROB = [0.0, 0.0]
    # Every epoch shows the same two views of an image (the released segmentation code).
    ssl.FREEZE_VIEWS = False


def _add_model_keys(cfg: CfgNode) -> None:
    # Stop when a backbone tensor is not filled by MODEL.WEIGHTS, or the file's metadata contradicts the config. False
    # turns both into warnings.
    cfg.MODEL.WEIGHTS_STRICT = True
    # Names of the classes in the order of the model's outputs. train_net.py fills it in from DATASETS.TRAIN, or, with
    # --eval-only, from the weights; test sets whose classes have another order are scored by name.
    cfg.MODEL.CLASS_NAMES = []

    # With MODEL.BACKBONE.NAME build_torchvision_backbone or build_torchvision_fpn_backbone: the name of a CNN in
    # torchvision.models, and the kind of batch norm that replaces its own ("" keeps it; other norms stay).
    cfg.MODEL.TORCHVISION = CfgNode()
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    cfg.MODEL.TORCHVISION.NORM = "SyncBN"

    ssl = cfg.MODEL.SSL = CfgNode()
    # Backbone feature that the projectors see.
    ssl.IN_FEATURE = "res5"
    # Norm inside all projectors and predictors. "SyncBN" becomes an equivalent on CPU (one line in the log says which).
    ssl.NORM = "SyncBN"
    # Encode both views in one batch: half as many collectives of SyncBN, but batch norm then normalises both views by
    # their common statistics, where all published methods take each view's own.
    ssl.JOINT_VIEWS = False
    # Start the last norm of each residual branch at 0, as SimSiam does.
    ssl.ZERO_INIT_RESIDUAL = True


def _add_densesiam_keys(cfg: CfgNode) -> None:
    ds = cfg.MODEL.DENSESIAM = CfgNode()
    # Output widths of the dense projector's 1x1 convolutions. The last is D, the embedding size of PixSim and, as in
    # the released construction, the number of soft region masks of RegionSim. Inferred.
    ds.PROJ_DIMS = [512, 512, 256]
    # Hidden width of the dense predictor (D -> PRED_DIM -> D). Inferred.
    ds.PRED_DIM = 128
    # Side S of the grid of points sampled in the overlap (GridSample); equals res5 at 224 px. Inferred.
    ds.GRID_SIZE = 7
    # What GridSample samples: "output" (p and z; the paper's text) or "feature" (the encoder's; the released code).
    ds.GRID_POSITION = "output"

    # PixSim: weight of the symmetrised negative cosine of p and stop-gradient z.
    ds.PIXEL = CfgNode()
    ds.PIXEL.LOSS_WEIGHT = 1.0

    # RegionSim.
    ds.REGION = CfgNode()
    # "infonce" (over the regions of one image; the released form) or "cosine" (p against stop-gradient z). Inferred.
    ds.REGION.LOSS = "infonce"
    # Temperature of "infonce".
    ds.REGION.TEMPERATURE = 0.1
    # Stop the gradient through the target regions. "cosine" always does; the released "infonce" does not.
    ds.REGION.STOP_GRADIENT = False
    # Weight, and the fraction of training in [0, 1) from which on it holds (0 before; still computed).
    ds.REGION.LOSS_WEIGHT = 0.1
    ds.REGION.START = 0.0
    # Widths of the region projector, hidden width of the region predictor. Inferred for pretraining.
    ds.REGION.PROJ_DIMS = [512, 512, 256]
    ds.REGION.PRED_DIM = 128

    # Optional SimSiam branch on globally pooled features (in the released model class, off in its config). With
    # SEM_SEG_ON it pools the decoder's map, where the released one pools res5. For a fixed rate of its predictor add
    # "image.predictor" to SOLVER.FIXED_LR_MODULES.
    ds.IMAGE_ON = False
    ds.IMAGE = CfgNode()
    ds.IMAGE.LOSS_WEIGHT = 1.0
    ds.IMAGE.PROJ_DIMS = [512, 512, 512]
    ds.IMAGE.PRED_DIM = 512

    # Unsupervised segmentation: the losses act on the cluster logits of MODEL.SEM_SEG_HEAD (a PseudoLabelSemSegHead)
    # instead of on a dense projector; GRID_SIZE is then the side of the aligned feature map.
    ds.SEM_SEG_ON = False


def _add_sem_seg_keys(cfg: CfgNode) -> None:
    # Stock keys keep their meaning: NAME, IN_FEATURES, NUM_CLASSES (clusters), CONVS_DIM, COMMON_STRIDE, NORM,
    # LOSS_WEIGHT (of the pseudo-label loss), IGNORE_VALUE.
    pl = cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL = CfgNode()
    # Outputs of the auxiliary over-clustering classifier; 0 = none.
    pl.AUX_CLASSES = 128
    # Number of conv-norm-ReLU blocks before each classifier's last convolution.
    pl.NUM_PROJ_CONVS = 2
    # Multiply each pixel's pseudo-label loss by the frequency of its label (the released rebalancing).
    pl.REBALANCE = True
    # Weight of the soft cross-entropy between views, shared between the main and auxiliary classifier in the ratio
    # log(AUX_CLASSES) : log(NUM_CLASSES), as released ("auto").
    pl.SIMILARITY_WEIGHT = 1.0

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
    # LARS leaves parameters of one dimension (biases, norms) without weight decay and without scaling. LR_IN_MOMENTUM
    # adds the step, with its learning rate, to the momentum, as SimCLR does; False adds the scaled gradient, as BYOL,
    # SlotCon and PixPro do. They differ while the learning rate changes.
    lars = cfg.SOLVER.LARS = CfgNode()
    lars.TRUST_COEFFICIENT = 0.001
    lars.EPS = 0.0
    lars.LR_IN_MOMENTUM = False
    # Keep the modules that the method names in its fixed_lr_modules, its predictors, at BASE_LR throughout (SimSiam's
    # --fix-pred-lr).
    cfg.SOLVER.FIX_PREDICTOR_LR = True
    # Length of the training and of its warm-up in epochs of DATASETS.TRAIN; 0 = MAX_ITER and WARMUP_ITERS count. With
    # EPOCHS, STEPS are fractions of the training in (0, 1).
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    # Of the numbered checkpoints keep the newest so many (0 = all), and for good those of every so many iterations
    # (0 = none).
    cfg.SOLVER.CHECKPOINT_KEEP_LAST = 0
    cfg.SOLVER.CHECKPOINT_KEEP_EVERY = 0

    # How predicted labels become classes in semantic evaluation: "none" (they are classes) or "hungarian" (clusters).
    cfg.TEST.SEM_SEG_MATCHING = "none"
    # What DenseSiam with a segmentation head returns in evaluation: "logits", as detectron2's evaluators expect, or
    # "labels", which ours and tools.segment take as well, in a fraction of the time and memory.
    cfg.TEST.SEM_SEG_OUTPUT = "logits"
    # Evaluate segmentation on a centre crop of this side, after resizing the short side to it; 0 = whole images.
    cfg.TEST.CENTER_CROP_SIZE = 0
    # Sliding-window inference of SlidingSemanticSegmentor: window side and stride in pixels; 0 = whole images.
    cfg.TEST.SLIDE_WINDOW = 0
    cfg.TEST.SLIDE_STRIDE = 0
    # Score, such as "segm/AP", by which the best model so far is kept as model_best.pth; "" = none.
    cfg.TEST.BEST_METRIC = ""


def _add_run_keys(cfg: CfgNode) -> None:
    run = cfg.RUN = CfgNode()
    # Resume although data, batch size, seed or model are not those of the checkpoint.
    run.ALLOW_MISMATCH = False
    # Stop after so many steps in a row whose loss or gradient is not finite; each is dropped in all processes.
    run.MAX_DROPPED_STEPS = 10
    # Share of unreadable files among the recent 1,000 reads of a process above which pretraining stops.
    run.MAX_UNREADABLE = 0.1
    # Stop, instead of only warning, when the embeddings have collapsed.
    run.STOP_ON_COLLAPSE = False
    # Seconds without a finished step after which every process says where it stands and leaves; 0 = never. The step
    # after an evaluation waits for the main process, which adds up the scores.
    run.WATCHDOG_SECONDS = 900
    # Seconds that processes wait for each other in one operation. More than the above, whose messages say more.
    run.DIST_TIMEOUT_SECONDS = 1800
