/* htpw_amx.c - matrix products by AMX tiles: pointwise, general convolution, fully connected; the rest is VNNI's.
 *
 * Words as in htpw_vnni.h; a slice is the 64 products of one tile of weights. Why all of it is exact: README.md.
 */
#include "htpw_amx.h"

#ifdef HTPW_HAS_X86_AMX

#include <cpuid.h>

#define HTPW_AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")))
#define HTPW_AMX_INLINE static inline HTPW_AMX __attribute__((always_inline))

enum {
    HTPW_AMX_ROWS = 16, /* of a tile, at most; with 64 rows of w that is the rule's 2 * row_block = 80 */
    HTPW_AMX_SLICE = 64,
    HTPW_AMX_FEW = 8,   /* so few rows or */
    HTPW_AMX_SHORT = 20 /* so few products are faster without tiles */
};

/* Permission. */

/* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); 0 if it is granted. By hand, since the library has no libc. */
static long htpw_amx_ask(void) {
    long result = 158;
    __asm__ volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result;
}

static int htpw_amx_find(void) {
    unsigned a, b, c, d, low, high;
    __cpuid(1, a, b, c, d);
    if ((c & (1u << 27)) == 0 || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3u) != 3u) {
        return 0; /* OSXSAVE, AMX-TILE, AMX-INT8 */
    }
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3u) == 3u && htpw_amx_ask() == 0;
}

int htpw_amx_is_usable(void) {
    static int answer; /* 0: not asked yet. Threads that ask at the same time get the same answer. */
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known == 0) {
        known = htpw_amx_find() ? 1 : -1;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    return known > 0;
}

/* Tiles. Instructions as text, since the intrinsics of some compilers do not say that they read memory. */

/* Operand of LDTILECFG. */
struct htpw_amx_shapes {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
};

/* Tiles 0-3 are sums, 4 and 5 a slice of x and w, 6 and 7 their last slice of `rest` products. */
HTPW_AMX_INLINE void htpw_amx_begin(int32_t height, int32_t rest) {
    const uint8_t h = (uint8_t)height, steps = (uint8_t)(rest / 4);
    const uint16_t r = (uint16_t)rest;
    const struct htpw_amx_shapes shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, r, 64}, {h, h, h, h, h, 16, h, steps}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

HTPW_AMX_INLINE void htpw_amx_end(void) { __asm__ volatile("tilerelease" : : : "memory"); }

#define HTPW_AMX_LOAD(tile, from, apart)                                                                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(apart) : "memory")
#define HTPW_AMX_STORE(tile, to, apart)                                                                                \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(apart) : "memory")
#define HTPW_AMX_ADD(sum, x, w) __asm__ volatile("tdpbssd %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : : : "memory")

/* The products of one slice of x with those of each block, `block` bytes apart. */
#define HTPW_AMX_BLOCK(b, x, w)                                                                                        \
    if (blocks > (b)) {                                                                                                \
        HTPW_AMX_LOAD(w, weights + (b) * block, apart);                                                                \
        HTPW_AMX_ADD(b, x, w);                                                                                         \
    }
#define HTPW_AMX_EACH_BLOCK(x, w)                                                                                      \
    HTPW_AMX_BLOCK(0, x, w) HTPW_AMX_BLOCK(1, x, w) HTPW_AMX_BLOCK(2, x, w) HTPW_AMX_BLOCK(3, x, w)

/* sums[rows of a tile][16 * blocks]. Rows of x are `pitch` bytes apart, the slices of a row follow each other. */
HTPW_AMX_INLINE void htpw_amx_tile(const int blocks, int32_t slices, int32_t rest, const void *x, size_t pitch,
                                   const int8_t *weights, size_t block, const int32_t *first, int32_t *sums) {
    const int8_t *at = (const int8_t *)x;
    const size_t apart = HTPW_AMX_SLICE, width = 64u * (size_t)blocks, none = 0;
#define HTPW_AMX_FIRST(b)                                                                                              \
    if (blocks > (b)) {                                                                                                \
        HTPW_AMX_LOAD(b, first + HTPW_VNNI_BLOCK * (b), none); /* every row the same */                                \
    }
    HTPW_AMX_FIRST(0)
    HTPW_AMX_FIRST(1)
    HTPW_AMX_FIRST(2)
    HTPW_AMX_FIRST(3)
    for (int32_t i = 0; i < slices; i++, at += HTPW_AMX_SLICE, weights += HTPW_VNNI_BLOCK * HTPW_AMX_SLICE) {
        HTPW_AMX_LOAD(4, at, pitch);
        HTPW_AMX_EACH_BLOCK(4, 5)
    }
    if (rest > 0) {
        HTPW_AMX_LOAD(6, at, pitch);
        HTPW_AMX_EACH_BLOCK(6, 7)
    }
#define HTPW_AMX_LAST(b)                                                                                               \
    if (blocks > (b)) {                                                                                                \
        HTPW_AMX_STORE(b, sums + HTPW_VNNI_BLOCK * (b), width);                                                        \
    }
    HTPW_AMX_LAST(0) HTPW_AMX_LAST(1) HTPW_AMX_LAST(2) HTPW_AMX_LAST(3)
}

/* As htpw_vnni_matmul, but for s->flip = 0 and at least one row. */
static HTPW_AMX void htpw_amx_matmul(const struct htpw_vnni_source *s, int32_t rows, int32_t out_c,
                                     const struct htpw_requant *q, int32_t in_offset, const int8_t *packed,
                                     const int8_t *w, const int32_t *bias, void *scratch, size_t stride, int8_t *y) {
    const int32_t steps = (s->products + 3) / 4, total = (out_c + HTPW_VNNI_BLOCK - 1) / HTPW_VNNI_BLOCK;
    const size_t pitch = 4 * (size_t)steps, block_bytes = HTPW_VNNI_BLOCK * pitch;
    const int32_t slices = steps / 16, rest = steps % 16 * 4, in_place = s->g == NULL && s->products % 4 == 0;
    /* tiles of equal height: the last one may do rows of the one before again */
    const int32_t tiles = (rows + HTPW_AMX_ROWS - 1) / HTPW_AMX_ROWS, height = (rows + tiles - 1) / tiles;
    uint8_t *xs = (uint8_t *)scratch;
    int8_t *ws = (int8_t *)scratch + HTPW_AMX_ROWS * pitch;
    struct htpw_vnni_group u HTPW_VNNI_QUAD;
    /* of this tile and the one before; what fills up the last quad of one has any value and is dropped */
    int32_t sums[2][HTPW_AMX_ROWS * HTPW_VNNI_LANES] HTPW_VNNI_QUAD, own[HTPW_VNNI_LANES];
    htpw_amx_begin(height, rest > 0 ? rest : HTPW_AMX_SLICE);
    for (int32_t block = 0; block < total; block += u.blocks) {
        const int32_t left = total - block, blocks = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const int32_t o = block * HTPW_VNNI_BLOCK, most = blocks * HTPW_VNNI_BLOCK;
        const int8_t *weights = ws;
        const int32_t *weight_sums = own;
        if (packed != NULL) {
            weights = packed + (size_t)block * block_bytes;
            weight_sums = (const int32_t *)(const void *)(packed + (size_t)total * block_bytes) + o;
        } else {
            for (int32_t b = 0; b < blocks; b++) {
                const int32_t c = o + b * HTPW_VNNI_BLOCK;
                htpw_vnni_pack(w + (size_t)c * (size_t)s->products, s->products, out_c - c,
                               ws + (size_t)b * block_bytes, own + HTPW_VNNI_BLOCK * b);
            }
        }
        /* x is signed here, so the correction for x + 128 goes */
        htpw_vnni_begin(&u, q, in_offset + 128, s->products, bias, weight_sums, o, out_c - o < most ? out_c - o : most,
                        blocks);
        int8_t *to = y;
        for (int32_t t = 0; t < tiles; t++) {
            const int32_t r = t < tiles - 1 ? t * height : rows - height;
            const void *x = s->x + (size_t)r * pitch;
            if (!in_place) {
                htpw_vnni_rows(s, r, height, xs);
                x = xs;
            }
            if (blocks == 4) {
                htpw_amx_tile(4, slices, rest, x, pitch, weights, block_bytes, u.first, sums[t % 2]);
            } else if (blocks == 2) {
                htpw_amx_tile(2, slices, rest, x, pitch, weights, block_bytes, u.first, sums[t % 2]);
            } else {
                htpw_amx_tile(1, slices, rest, x, pitch, weights, block_bytes, u.first, sums[t % 2]);
            }
            if (t > 0) { /* the unit for tiles works on one tile while the vector units requantise the one before */
                htpw_vnni_finish(&u, height, sums[(t - 1) % 2], stride, to);
            }
            to = y + (size_t)r * stride + o;
        }
        htpw_vnni_finish(&u, height, sums[(tiles - 1) % 2], stride, to);
    }
    htpw_amx_end();
}

static int htpw_amx_is_small(int32_t rows, int32_t products) {
    return rows <= HTPW_AMX_FEW || products <= HTPW_AMX_SHORT;
}

static void htpw_packed_s8_amx(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                               int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                               void *scratch, int8_t *y) {
    const struct htpw_vnni_source s = {x, in_c, NULL, 0, 0, 0};
    if (htpw_amx_is_small(rows, in_c)) {
        htpw_backend_x86_avx512vnni.packed(rows, in_c, out_c, q, in_offset, x, packed, bias, scratch, y);
    } else {
        htpw_amx_matmul(&s, rows, out_c, q, in_offset, (const int8_t *)packed, NULL, bias, scratch, (size_t)out_c, y);
    }
}

static void htpw_conv1x1_s8_amx(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                int8_t *y) {
    const struct htpw_vnni_source s = {x, in_c, NULL, 0, 0, 0};
    if (htpw_amx_is_small(rows, in_c)) {
        htpw_backend_x86_avx512vnni.conv1x1(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y);
    } else {
        htpw_amx_matmul(&s, rows, out_c, q, in_offset, NULL, w, bias, scratch, (size_t)out_c, y);
    }
}

static void htpw_conv_s8_amx(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                             const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    const int32_t rows = g->n * g->out_h * g->out_w, products = g->k_h * g->k_w * (g->in_c / g->groups);
    if (htpw_amx_is_small(rows, products / 4)) { /* tiles gain less where every row is copied first */
        htpw_backend_x86_avx512vnni.conv(g, q, in_offset, x, w, bias, scratch, y);
        return;
    }
    for (int32_t group = 0; group < g->groups; group++) {
        const struct htpw_group part = htpw_group_of(g, q, group, w, bias);
        const struct htpw_vnni_source s = {x, products, g, group, (int8_t)-in_offset, 0};
        htpw_amx_matmul(&s, rows, part.out_c, &part.q, in_offset, NULL, part.w, part.bias, scratch, (size_t)g->out_c,
                        y + part.o);
    }
}

const struct htpw_backend htpw_backend_x86_amx = {
    HTPW_BACKEND_X86_AMX, htpw_conv_s8_amx,     htpw_depthwise_s8_vnni, htpw_conv1x1_s8_amx,   htpw_packed_s8_amx,
    htpw_add_s8_vnni,     htpw_avgpool_s8_vnni, htpw_maxpool_s8_vnni,   htpw_conv1x1_s4_plain, NULL};

#else

typedef int htpw_amx_is_not_built; /* C99 asks for at least one declaration */

#endif
