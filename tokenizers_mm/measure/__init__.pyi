from tokenizers_mm.measure.classification import cross_validate as cross_validate
from tokenizers_mm.measure.codecs import (
    VARIANTS as VARIANTS,
    Codec as Codec,
    CodecResult as CodecResult,
    encode_at_rate as encode_at_rate,
)
from tokenizers_mm.measure.evaluation import Evaluation as Evaluation
from tokenizers_mm.measure.evaluator import evaluate as evaluate
from tokenizers_mm.measure.extractors import extractor as extractor
from tokenizers_mm.measure.frechet import FeatureStatistics as FeatureStatistics, frechet_distance as frechet_distance
from tokenizers_mm.measure.information import CodeStatistics as CodeStatistics, kl_bits as kl_bits
from tokenizers_mm.measure.judge import (
    AttributeJudge as AttributeJudge,
    accuracy as accuracy,
    train_judge as train_judge,
)
from tokenizers_mm.measure.memorisation import (
    COPIES_ALLOWED as COPIES_ALLOWED,
    RATIO_RANGE as RATIO_RANGE,
    Memorisation as Memorisation,
)
from tokenizers_mm.measure.presets import Preset as Preset, preset as preset
from tokenizers_mm.measure.probes import linear_probe as linear_probe, pooled_features as pooled_features
from tokenizers_mm.measure.protocol import Measurement as Measurement, Protocol as Protocol
from tokenizers_mm.measure.rate_distortion import (
    CodecPoint as CodecPoint,
    codec_curve as codec_curve,
    in_one_file as in_one_file,
    mean_psnr as mean_psnr,
    pareto_front as pareto_front,
    psnr_at_rate as psnr_at_rate,
    write_images as write_images,
)
from tokenizers_mm.measure.reader import (
    Reader as Reader,
    character_accuracy as character_accuracy,
    train_reader as train_reader,
)
from tokenizers_mm.measure.reconstruction import (
    SSIM_WINDOW as SSIM_WINDOW,
    perceptual_distance as perceptual_distance,
    psnr as psnr,
    ssim as ssim,
)
from tokenizers_mm.measure.semantic_figures import (
    ProbeData as ProbeData,
    batches_of as batches_of,
    probe_figures as probe_figures,
    teacher_figures as teacher_figures,
    zero_shot_figures as zero_shot_figures,
)
from tokenizers_mm.measure.zero_shot import class_texts as class_texts
