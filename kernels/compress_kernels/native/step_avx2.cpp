// The norm and the attention of a decoding step, compiled for avx2.
#define CK_ISA avx2
#include "step.h"
