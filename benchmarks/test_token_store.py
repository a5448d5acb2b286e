"""Reading a token store against a plain Parquet file of the same codes: 20 000 images of 256 codes of 14 bits.

Both are in the page cache. Parquet reads whole row groups, here as large as the store's shards; a table that fits in
memory need not be read again, so that case is timed too.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.data import Preprocess
from tokenizers_mm.store import Row, StoreWriter, TokenDataset

IMAGES, LENGTH, SHARD, BATCH, DRAWN = 20_000, 256, 1024, 64, 1280
SPEC = TokenSpec(image_size=(128, 128), grid=(16, 16), dim=4, codes=(2**14,))


def tensor_of(column):
    codes = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return torch.from_numpy(codes.flatten().to_numpy().astype(np.int64)).view(-1, LENGTH, 1)


class ParquetCodes:
    """What one writes without a library: a column of fixed-size lists of uint16."""

    def __init__(self, path, codes):
        column = pa.FixedSizeListArray.from_arrays(pa.array(codes.to(torch.uint16).flatten().numpy()), LENGTH)
        pq.write_table(pa.table({"codes": column}), path, row_group_size=SHARD)
        self.path, self.file = path, pq.ParquetFile(path)

    def batch(self, items):
        groups = np.unique(items // SHARD)
        rows = np.searchsorted(groups, items // SHARD) * SHARD + items % SHARD
        return tensor_of(self.file.read_row_groups(groups.tolist()).column(0).take(pa.array(rows)))

    def batches(self):
        return [tensor_of(batch.column(0)) for batch in self.file.iter_batches(BATCH)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    codes = torch.randint(2**14, (IMAGES, LENGTH, 1), generator=torch.Generator().manual_seed(0))
    with StoreWriter(root / "store", SPEC, "benchmark", Preprocess(128)) as writer:
        for shard, start in enumerate(range(0, IMAGES, SHARD)):
            tokens = Tokens(codes_BNS=codes[start : start + SHARD], grid=SPEC.grid)
            writer.write_shard(shard, tokens, [Row(str(i)) for i in range(start, start + len(tokens))])
    return TokenDataset(root / "store"), ParquetCodes(root / "codes.parquet", codes), codes


def notes(store, parquet, images):
    """Bytes of the codes on disk, and how many images one timed call reads."""
    held = sum(path.stat().st_size for path in store.path.glob("*.safetensors"))
    return {"images": images, "A_bytes": held, "B_bytes": parquet.path.stat().st_size}


def test_sequential(compare, stores):
    store, parquet, codes = stores
    starts = range(0, IMAGES, BATCH)

    def read():
        return [store.batch(range(start, min(start + BATCH, IMAGES))).tokens.data for start in starts]

    assert torch.equal(torch.cat(read()), codes)
    assert torch.equal(torch.cat(parquet.batches()), codes)
    name = f"{IMAGES} x {LENGTH} codes in order, batches of {BATCH}"
    compare(name, {"token store": read, "Parquet": parquet.batches}, rounds=3, **notes(store, parquet, IMAGES))


@pytest.mark.parametrize("in_memory", [False, True])
def test_random(compare, stores, in_memory):
    store, parquet, codes = stores
    draws = np.random.default_rng(0).integers(0, IMAGES, (DRAWN // BATCH, BATCH))
    table = parquet.file.read().column(0).combine_chunks() if in_memory else None

    def read():
        return [store.batch(torch.from_numpy(items)).tokens.data for items in draws]

    def read_parquet():
        if table is None:
            return [parquet.batch(items) for items in draws]
        return [tensor_of(table.take(pa.array(items))) for items in draws]

    for result in (read(), read_parquet()):
        assert torch.equal(torch.cat(result), codes[draws.flatten()])
    name = f"{DRAWN} of {IMAGES} x {LENGTH} codes at random, batches of {BATCH}"
    theirs = "Parquet, all of it in memory" if in_memory else "Parquet"
    compare(name, {"token store": read, theirs: read_parquet}, rounds=3, **notes(store, parquet, DRAWN))
