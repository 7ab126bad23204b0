// The norm and the attention of a decoding step, compiled for portable.
#define CK_ISA portable
#include "step.h"
