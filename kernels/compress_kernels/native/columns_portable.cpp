// The columns of a block of GPTQ, compiled for portable.
#define CK_ISA portable
#include "columns.h"
