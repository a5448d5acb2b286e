// Everything that is compiled once for each instruction set; no include guard on purpose.
namespace {
#include "vector.h"
#include "winograd.h"
#include "sums.h"
#include "convolve.h"
}  // namespace
