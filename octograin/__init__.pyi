"""What octograin exports; `__init__.py` reads this list, and so do editors and type checkers."""

from converters.job.convert import convert_dataset as convert_dataset
from pipeline.data.conventions import restore_gripper as restore_gripper
from pipeline.data.dataset import Dataset as Dataset, open_dataset as open_dataset
from pipeline.errors import (
    DataError as DataError,
    RecordError as RecordError,
    SchemaError as SchemaError,
    UserError as UserError,
)
from pipeline.loading.batch import LeafSpec as LeafSpec
from pipeline.loading.data_config import DataConfig as DataConfig, DatasetConfig as DatasetConfig
from pipeline.loading.loader import Loader as Loader
from pipeline.loading.loader_opening import open_loader as open_loader
from pipeline.loading.transforms.action_transforms import (
    MaskActions as MaskActions,
    PadActions as PadActions,
    RelativeActions as RelativeActions,
)
from pipeline.loading.transforms.gripper_rules import (
    ContinuousGripper as ContinuousGripper,
    GripperHysteresis as GripperHysteresis,
    GripperThreshold as GripperThreshold,
)
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation as ConvertObservationRotation,
    DropObservation as DropObservation,
    StateNoise as StateNoise,
)
from pipeline.loading.transforms.rotation_transforms import (
    ConvertActionRotation as ConvertActionRotation,
    RelativePose as RelativePose,
)
from pipeline.loading.transforms.transform import (
    ActionTransform as ActionTransform,
    Draws as Draws,
    Transform as Transform,
    dims_at as dims_at,
)
from pipeline.parts.part_files import load_parts as load_parts
from train.flags import load_config as load_config
from train.octo.heads.diffusion import masked_mean as masked_mean
from train.octo.octo_config import (
    DiffusionConfig as DiffusionConfig,
    ImageTokenizerConfig as ImageTokenizerConfig,
    LanguageConfig as LanguageConfig,
    LowdimTokenizerConfig as LowdimTokenizerConfig,
    OctoConfig as OctoConfig,
    RegressionConfig as RegressionConfig,
    T5Config as T5Config,
    TransformerConfig as TransformerConfig,
    VGGTTokenizerConfig as VGGTTokenizerConfig,
    octo_base as octo_base,
    octo_small as octo_small,
)
from train.octo.protocols import (
    HeadConfig as HeadConfig,
    TokenizerConfig as TokenizerConfig,
    WeightSource as WeightSource,
)
from train.octo.released.weight_loading import Pretrained as Pretrained
from train.octo.token_groups import TokenGroup as TokenGroup
from train.octo.tokenizer_inputs import observation_mask as observation_mask
from train.policy import (
    FirstActions as FirstActions,
    GripperCommands as GripperCommands,
    PlannedActions as PlannedActions,
    Policy as Policy,
    PolicyConfig as PolicyConfig,
    RealTimeChunking as RealTimeChunking,
    TemporalEnsemble as TemporalEnsemble,
)
from train.run import finetune as finetune
from train.serve.in_thread import serving as serving
from train.train_config import (
    AugmentConfig as AugmentConfig,
    OptimizerConfig as OptimizerConfig,
    TrainConfig as TrainConfig,
    ValidationConfig as ValidationConfig,
)

__version__: str

def unpickled(content: bytes) -> object: ...
