/* The mapping between row-major kernels and the layouts that backends cache them in: one formula for all backends. */
#include "backends/htpw_backend.h"

static uint32_t htpw_blocks(uint32_t n, uint32_t block) { return (n + block - 1u) / block; }

/* Index of element (o, i) by the formula in htpw_backend.h. */
static uint32_t htpw_layout_index(const struct htpw_layout *layout, uint32_t steps, uint32_t o, uint32_t i) {
    const uint32_t ob = layout->out_block, ib = layout->in_block;
    uint32_t column = i % ib;
    if (layout->pairs && (column % 4u == 1u || column % 4u == 2u)) {
        column ^= 3u; /* 1 and 2 change places */
    }
    return ((o / ob * steps + i / ib) * ob + o % ob) * ib + column;
}

/* Elements of the filled-up matrix. */
static uint32_t htpw_layout_elements(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    return htpw_blocks(out_c, layout->out_block) * layout->out_block * htpw_blocks(in_c, layout->in_block) *
           layout->in_block;
}

static uint32_t htpw_layout_weight_bytes(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    return (htpw_layout_elements(layout, out_c, in_c) * layout->bytes + 3u) & ~UINT32_C(3);
}

uint32_t htpw_layout_bytes(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    const uint32_t sums = layout->sums ? 4u * htpw_blocks(out_c, layout->out_block) * layout->out_block : 0u;
    return htpw_layout_weight_bytes(layout, out_c, in_c) + sums;
}

void htpw_layout_clear(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed) {
    const uint32_t bytes = htpw_layout_bytes(layout, out_c, in_c);
    for (uint32_t i = 0; i < bytes; i++) {
        ((uint8_t *)packed)[i] = 0;
    }
}

void htpw_layout_put(const struct htpw_layout *layout, uint32_t in_c, uint32_t first, uint32_t count, const int8_t *w,
                     void *packed) {
    const uint32_t steps = htpw_blocks(in_c, layout->in_block);
    uint32_t o = first / in_c, i = first % in_c;
    for (uint32_t n = 0; n < count; n++) {
        const uint32_t at = htpw_layout_index(layout, steps, o, i);
        if (layout->bytes == 1) {
            ((int8_t *)packed)[at] = w[n];
        } else {
            ((int16_t *)packed)[at] = w[n];
        }
        if (++i == in_c) {
            i = 0;
            o++;
        }
    }
}

static int32_t htpw_layout_weight(const struct htpw_layout *layout, const void *packed, uint32_t at) {
    return layout->bytes == 1 ? ((const int8_t *)packed)[at] : ((const int16_t *)packed)[at];
}

void htpw_layout_finish(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed) {
    if (!layout->sums) {
        return;
    }
    const uint32_t steps = htpw_blocks(in_c, layout->in_block);
    const uint32_t rows = htpw_blocks(out_c, layout->out_block) * layout->out_block;
    int32_t *sums = (int32_t *)(void *)((uint8_t *)packed + htpw_layout_weight_bytes(layout, out_c, in_c));
    for (uint32_t o = 0; o < rows; o++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < in_c; i++) {
            sum += htpw_layout_weight(layout, packed, htpw_layout_index(layout, steps, o, i));
        }
        sums[o] = sum;
    }
}

void htpw_layout_get(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, const void *packed, int8_t *w) {
    const uint32_t steps = htpw_blocks(in_c, layout->in_block);
    for (uint32_t o = 0; o < out_c; o++) {
        for (uint32_t i = 0; i < in_c; i++) {
            *w++ = (int8_t)htpw_layout_weight(layout, packed, htpw_layout_index(layout, steps, o, i));
        }
    }
}
