// The columns of a block of GPTQ, compiled for avx2.
#define CK_ISA avx2
#include "columns.h"
