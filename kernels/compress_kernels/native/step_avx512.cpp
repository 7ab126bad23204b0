// The norm and the attention of a decoding step, compiled for avx512.
#define CK_ISA avx512
#include "step.h"
