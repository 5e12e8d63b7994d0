/* htpw_activation_s8.c - element-wise functions of one int8 tensor. */
#include "htpw_requantise.h"

void htpw_clamp_s8_ref(size_t n, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        y[i] = (int8_t)htpw_clamp(x[i], act_min, act_max);
    }
}

void htpw_table_s8_ref(size_t n, const int8_t *table, const int8_t *x, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        y[i] = table[x[i] + 128];
    }
}
