"""The base recipes, complete: every field that a run reads is here, with its unit in its name."""

from ml_collections import ConfigDict, config_dict


def base() -> ConfigDict:
    """The fields that all recipes share, with the paper's ImageNet values (section 4)."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 256  # global; the paper's 8 GPUs x 32
    config.num_epochs = 100.0
    config.num_steps = config_dict.placeholder(int)  # wins over num_epochs where set

    config.init_from = config_dict.placeholder(str)  # a checkpoint to take weights from; the classifier if it fits
    config.freeze_backbone = False  # True: only the classifier trains, the rest is in inference mode

    config.learning_rate = 0.1
    config.optimizer = "sgd_nesterov"  # sgd_nesterov | sgd | lars | lamb
    config.momentum = 0.9  # Nesterov, no dampening
    config.weight_decay = 1e-4  # on every parameter, batch norm and biases included, ...
    config.weight_decay_of = "all"  # ... or less: all | but_norms | kernels
    config.loss = "softmax"  # softmax | sigmoid: one answer, or a yes or no for every class
    config.label_smoothing = 0.0
    config.target_threshold = config_dict.placeholder(float)  # sigmoid: mixed classes above are a yes, others a no
    config.schedule = ConfigDict()
    config.schedule.name = "step"  # step | cosine
    config.schedule.boundaries_epochs = (30.0, 60.0, 90.0)  # step: the rate drops here ...
    config.schedule.boundaries_steps = ()  # ... or here, where set, ...
    config.schedule.factor = 0.1  # ... by this
    config.schedule.warmup_epochs = 0.0  # linear from 0

    config.bn_group_images = 32  # the paper's batch per GPU; 0 takes the whole batch
    config.accumulation_steps = 1  # microbatches per step; the mathematics stays
    config.conv_impl = "auto"  # or one algorithm everywhere: see ops.grouped_conv.algorithm
    config.compute_dtype = "bfloat16"  # bfloat16 | float32; parameters are float32

    config.ema_decay = 0.0  # of moving averages of weights and statistics, which are then evaluated; 0 is off
    config.recompute_bn_images = 0  # for batch-norm statistics after the last step; 0 is off

    config.on_nonfinite = "stop"  # stop | skip: a step whose loss or gradient is not finite changes nothing
    config.max_skipped_in_a_row = 10  # skip: the run stops after so many
    config.debug_nans = False  # names the operation and the layer of the first NaN or infinity; slow

    config.model = ConfigDict()
    config.model.name = ""  # a row of models.zoo.ARCHS; empty: by the numbers below
    config.model.family = "imagenet"  # imagenet | cifar | small
    config.model.depth = 50
    config.model.cardinality = 32
    config.model.bottleneck_width = 4
    config.model.shortcut = True  # False: the ablation of section 5.1
    config.model.preactivation = False  # True: batch norm and ReLU before the convolutions
    config.model.dropout = config_dict.placeholder(float)  # of basic blocks and VGG; by default the row's
    config.model.stochastic_depth = 0.0  # how often the last block is left out; those before it less; 0 is off

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # a row of data.sources.SOURCES
    config.data.dir = config_dict.placeholder(str)  # where it lies; by default the source's usual places
    config.data.class_list = config_dict.placeholder(str)  # a file of class names, one per line; by default all
    config.data.on_bad_image = "error"  # error | replace: training goes on with the next image
    config.data.image_size_px = 224
    config.data.train_size_px = config_dict.placeholder(int)  # of training images, where it differs
    config.data.resize_px = 256  # evaluation: short side before the centre crop
    config.data.interpolation = "bicubic"  # bicubic | bilinear, of that resizing; training crops are bicubic
    config.data.crop = "random_sized"  # random_sized | resize | none (images are of image_size_px already)
    config.data.repeats = 1  # differently augmented copies of an image in one batch; each counts as an image
    config.data.mean = (123.675, 116.28, 103.53)  # 255 * (0.485, 0.456, 0.406)
    config.data.std = (58.395, 57.12, 57.375)  # 255 * (0.229, 0.224, 0.225)
    config.data.num_threads = 16  # that decode, per host

    config.augment = ConfigDict()
    config.augment.color_jitter = 0.4  # strength of brightness, contrast, saturation; 0 is off
    config.augment.lighting_std = 0.1  # PCA lighting; 0 is off
    config.augment.flip = True
    config.augment.policy = "none"  # none | trivial_augment | rand_augment: see data.policies
    config.augment.magnitude = 7  # of rand_augment, 0 to 10
    config.augment.pad_px = 0  # zero-pad and random crop, after normalisation; 0 is off
    config.augment.erase_probability = 0.0  # random erasing; 0 is off
    config.augment.mixup_alpha = 0.0  # of mixup's Beta distribution; 0 is off; mixed within batch-norm groups
    config.augment.cutmix_alpha = 0.0  # of cutmix's; with both, each group of images takes one of them

    config.protocol = "center"  # of --mode=evaluate: center | center_320 | ten_crop | multi_scale
    config.evaluate = ConfigDict()
    config.evaluate.every_steps = config_dict.placeholder(int)  # default: every epoch
    config.evaluate.batch_size = 256
    config.evaluate.ensemble = config_dict.placeholder(str)  # other checkpoints' directories, with commas between
    config.evaluate.classes = "all"  # all | present: an answer may be any class, or only those of the images
    config.evaluate.class_map = config_dict.placeholder(str)  # a file: the checkpoint's label of each class of the data
    config.evaluate.real_labels = config_dict.placeholder(str)  # real.json: several right answers for an image
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_newest = 2
    config.checkpoint.keep_best = 1  # by the task's score: top-1
    config.checkpoint.keep_every_epochs = config_dict.placeholder(int)  # save at these and keep permanently
    config.checkpoint.keep_every_steps = config_dict.placeholder(int)  # likewise
    config.resume_changed = False  # True: go on though fields changed that change the trajectory
    config.log = ConfigDict()
    config.log.every_steps = 50
    config.watch = ConfigDict()
    config.watch.profile_steps = ()  # trace these, from the first to the last: 100,110
    config.watch.spike_nats = 1.0  # a loss is a spike so far above the median of the last rows
    return config


def imagenet() -> ConfigDict:
    """ImageNet-1K: 100 epochs of 1,281,167 images in batches of 256, on 224 px random-sized crops (section 4)."""
    return base()


def modern() -> ConfigDict:
    """What the recipes of 2021 share: ImageNet-1K, cosine with warm-up, cutmix, no colour jitter and no PCA lighting.

    The originals take batch-norm statistics, and mix images, per GPU; 128 is torchvision's batch per GPU.
    """
    config = imagenet()
    config.bn_group_images = 128
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    config.augment.color_jitter = 0.0
    config.augment.lighting_std = 0.0
    config.augment.cutmix_alpha = 1.0
    return config


def strikes_back() -> ConfigDict:
    """What procedures A1 to A3 share (Wightman, Touvron and Jegou 2021, "ResNet strikes back", Table 2)."""
    config = modern()
    config.batch_size = 2048
    config.optimizer = "lamb"
    config.weight_decay_of = "kernels"
    config.loss = "sigmoid"
    config.data.resize_px = 235  # 224 / 0.95
    config.augment.policy = "rand_augment"
    return config


def imagenet5k() -> ConfigDict:
    """ImageNet-5K: 6.8 M images, as many mini-batches as the 1K run makes (section 5.2).

    100 epochs of 1,281,167 images are 500,456 steps of 256; 30, 60 and 90 of them end at the boundaries.
    """
    config = base()
    config.num_steps = 500_456
    config.schedule.boundaries_steps = (150_137, 300_274, 450_410)
    config.data.name = "imagenet5k"
    return config


def cifar(num_classes: int) -> ConfigDict:
    """CIFAR-10 or -100: 300 epochs in batches of 128 = 8 GPUs x 16, pad-and-crop and flip (section 5.3)."""
    config = base()
    config.batch_size = 128
    config.bn_group_images = 16
    config.num_epochs = 300.0
    config.weight_decay = 5e-4
    config.schedule.boundaries_epochs = (150.0, 225.0)
    config.model.family = "cifar"
    config.model.depth = 29
    config.data.name = f"cifar{num_classes}"
    config.data.image_size_px = config.data.resize_px = 32
    config.data.crop = "none"
    if num_classes == 10:
        config.data.mean, config.data.std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    else:
        config.data.mean, config.data.std = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)
    config.augment.color_jitter = 0.0
    config.augment.lighting_std = 0.0
    config.augment.pad_px = 4
    return config


def wide_resnet(num_classes: int) -> ConfigDict:
    """CIFAR as in Zagoruyko & Komodakis 2016 (section 3): 200 epochs, one GPU, the rate times 0.2; see fidelity.md."""
    config = cifar(num_classes)
    config.bn_group_images = 128
    config.num_epochs = 200.0
    config.schedule.boundaries_epochs = (60.0, 120.0, 160.0)
    config.schedule.factor = 0.2
    return config


def fashion_mnist() -> ConfigDict:
    """28 px grey images on the available device: pad-and-crop and flip, cosine, float32."""
    config = base()
    config.batch_size = 128
    config.num_epochs = 12.0
    config.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    config.compute_dtype = "float32"
    config.model.name = "resnext20_8x4d_small"
    config.data.name = "fashion_mnist"
    config.data.image_size_px = config.data.resize_px = 28
    config.data.crop = "none"
    config.data.mean, config.data.std = (72.94,), (90.02,)  # of the 60,000 training images
    config.data.num_threads = 1
    config.augment.color_jitter = 0.0
    config.augment.lighting_std = 0.0
    config.augment.pad_px = 2
    return config
