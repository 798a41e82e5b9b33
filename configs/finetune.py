"""Fine-tuning: the weights of any checkpoint, trained or converted, on any class folders, with a new classifier.

python main.py --config=configs/finetune.py --config.init_from=CHECKPOINT --config.data.dir=FOLDER

The folder has FOLDER/train/<class>/* and FOLDER/validation/<class>/*. With --config.freeze_backbone=true only the
classifier trains; a rate of 0.1 then suits most. With few images in small batches, --config.bn_group_images=0.
"""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config() -> ConfigDict:
    config = common.base()
    config.batch_size = 64
    config.num_epochs = 20.0
    config.learning_rate = 0.01
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    config.compute_dtype = "float32"
    config.data.name = "folder"
    config.augment.color_jitter = 0.0
    config.augment.lighting_std = 0.0
    config.evaluate.batch_size = 64
    # Left open, these are the checkpoint's: the network, and how its images are prepared.
    config.model.name = config_dict.placeholder(str)
    config.data.image_size_px = config_dict.placeholder(int)
    config.data.resize_px = config_dict.placeholder(int)
    config.data.interpolation = config_dict.placeholder(str)
    config.data.mean = config_dict.placeholder(tuple)
    config.data.std = config_dict.placeholder(tuple)
    return config
