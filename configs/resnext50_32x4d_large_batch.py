"""ResNeXt-50 (32x4d) in batches of 8192 with LARS, for a pod: the paper's 100 epochs in 15,639 steps; not the paper's.

    python main.py --config=configs/resnext50_32x4d_large_batch.py

Not published for this network; to be compared with the 22.2 % top-1 error of small batches (Table 3). Made from
tensorflow/tpu's ResNet-50 with LARS (models/official/resnet/lars_util.py): the warm-up of 5 epochs, and that batch
norms and biases go without decay and ratio. Its rate for 16,384 images, 25, is scaled linearly, which is ours: there it
is 25 for all smaller batches too. Its rate falls as a parabola, here as a cosine.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.imagenet()
    config.model.name = "resnext50_32x4d"
    config.batch_size = 8192
    config.optimizer = "lars"
    config.learning_rate = 25.0 * 8192 / 16384
    config.weight_decay_of = "kernels"
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    config.checkpoint.every_steps = 157
    return config
