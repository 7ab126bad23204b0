// The columns of a block of GPTQ, compiled for avx512.
#define CK_ISA avx512
#include "columns.h"
