/* htpw_requantise.c - the exported form of the shared rounding rule. */
#define HTPW_REQUANTISE_HERE 1
#include "htpw_requantise.h"

int32_t htpw_requantise(int32_t v, int32_t multiplier, int32_t shift) {
    return htpw_requantise_inline(v, multiplier, shift);
}
