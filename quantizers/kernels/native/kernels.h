// Everything that is compiled once for each instruction set; no include guard on purpose.
namespace {
#include "vector.h"
#include "nearest.h"
#include "residual.h"
#include "bits.h"
#include "scalar.h"
}  // namespace
