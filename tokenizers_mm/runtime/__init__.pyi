from tokenizers_mm.runtime.device import choose_device as choose_device
from tokenizers_mm.runtime.interrupt import (
    Interrupted as Interrupted,
    StopSignals as StopSignals,
    leave_signals_to_the_main_process as leave_signals_to_the_main_process,
    termination_raises as termination_raises,
)
from tokenizers_mm.runtime.paths import is_text as is_text, local_path as local_path
from tokenizers_mm.runtime.precision import (
    AskedPrecision as AskedPrecision,
    computes_bfloat16 as computes_bfloat16,
    describe_precision as describe_precision,
    resolve_precision as resolve_precision,
)
from tokenizers_mm.runtime.writing import (
    WriteError as WriteError,
    append_text as append_text,
    quiet_tracker_threads as quiet_tracker_threads,
    separate as separate,
    whole_file as whole_file,
    write_tensors as write_tensors,
    write_text as write_text,
)
