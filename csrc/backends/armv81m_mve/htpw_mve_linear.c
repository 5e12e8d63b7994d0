/* htpw_mve_linear.c - matrix products with Helium: blocks of four outputs, 16 columns of x and w per instruction.
 *
 * The sums leave out the input offset, because sum (x + in_offset) * w = sum x * w + in_offset * sum w, and the last
 * term is added to the bias once per output channel. Loops are in assembly where the compiler's registers would not do:
 * VMLADAVA accumulates in even core registers only.
 */
#include "htpw_mve.h"

#ifdef HTPW_HAS_ARMV81M_MVE

#define HTPW_MVE_OUT 4 /* outputs of a block, and of the layout in HTPW_BACKENDS */
#define HTPW_MVE_IN 16 /* columns of a step */

/* Per-output words (biases, multipliers or shifts), block after block; one word for all, or none, is spread out. */
struct htpw_mve_words {
    const int32_t *at;
    size_t step; /* to the next block: 4 or 0 */
    int32_t same[HTPW_MVE_OUT];
};

HTPW_MVE_INLINE void htpw_mve_words_open(struct htpw_mve_words *words, const int32_t *p, int32_t many) {
    vstrwq_s32(words->same, vdupq_n_s32(p ? p[0] : 0));
    words->at = many ? p : words->same;
    words->step = many ? HTPW_MVE_OUT : 0;
}

HTPW_MVE_INLINE int32x4_t htpw_mve_words_next(struct htpw_mve_words *words, mve_pred16_t lanes) {
    const int32_t *at = words->at;
    words->at += words->step;
    return vldrwq_z_s32(at, lanes);
}

/* What each output has of its own. */
struct htpw_mve_outputs {
    struct htpw_mve_words bias, multiplier, shift;
};

HTPW_MVE_INLINE void htpw_mve_outputs_open(struct htpw_mve_outputs *out, const struct htpw_requant *q,
                                           const int32_t *bias) {
    htpw_mve_words_open(&out->bias, bias, bias != NULL);
    htpw_mve_words_open(&out->multiplier, q->multiplier, q->per_channel);
    htpw_mve_words_open(&out->shift, q->shift, q->per_channel);
}

/* Sums of one row of x with a packed block of w. */
HTPW_MVE_INLINE int32x4_t htpw_mve_dot_packed(int32_t in_c, const int8_t *x, const int8_t *w) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    __asm__("wls     lr, %[n], 2f\n"
            "1:\n\t"
            "vldrb.8 q0, [%[x]], #16\n\t"
            "vldrb.8 q1, [%[w]], #16\n\t"
            "vmladava.s8 %[a0], q0, q1\n\t"
            "vldrb.8 q2, [%[w]], #16\n\t"
            "vmladava.s8 %[a1], q0, q2\n\t"
            "vldrb.8 q1, [%[w]], #16\n\t"
            "vmladava.s8 %[a2], q0, q1\n\t"
            "vldrb.8 q2, [%[w]], #16\n\t"
            "vmladava.s8 %[a3], q0, q2\n\t"
            "le      lr, 1b\n"
            "2:"
            : [a0] "+Te"(a0), [a1] "+Te"(a1), [a2] "+Te"(a2), [a3] "+Te"(a3), [x] "+r"(x), [w] "+r"(w)
            : [n] "r"(in_c / HTPW_MVE_IN)
            : "q0", "q1", "q2", "lr", "memory");
    if (in_c % HTPW_MVE_IN != 0) { /* columns beyond x are not read; in w they are there, and 0 */
        const int8x16_t v = vldrbq_z_s8(x, vctp8q((uint32_t)(in_c % HTPW_MVE_IN)));
        a0 = vmladavaq_s8(a0, v, vldrbq_s8(w));
        a1 = vmladavaq_s8(a1, v, vldrbq_s8(w + HTPW_MVE_IN));
        a2 = vmladavaq_s8(a2, v, vldrbq_s8(w + 2 * HTPW_MVE_IN));
        a3 = vmladavaq_s8(a3, v, vldrbq_s8(w + 3 * HTPW_MVE_IN));
    }
    return htpw_mve_gather(a0, a1, a2, a3);
}

/* Sums of one row of x with four rows of w. */
HTPW_MVE_INLINE int32x4_t htpw_mve_dot(int32_t in_c, const int8_t *x, const int8_t *w0, const int8_t *w1,
                                       const int8_t *w2, const int8_t *w3) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    __asm__("wls     lr, %[n], 2f\n"
            "1:\n\t"
            "vldrb.8 q0, [%[x]], #16\n\t"
            "vldrb.8 q1, [%[w0]], #16\n\t"
            "vmladava.s8 %[a0], q0, q1\n\t"
            "vldrb.8 q2, [%[w1]], #16\n\t"
            "vmladava.s8 %[a1], q0, q2\n\t"
            "vldrb.8 q1, [%[w2]], #16\n\t"
            "vmladava.s8 %[a2], q0, q1\n\t"
            "vldrb.8 q2, [%[w3]], #16\n\t"
            "vmladava.s8 %[a3], q0, q2\n\t"
            "le      lr, 1b\n"
            "2:"
            : [a0] "+Te"(a0), [a1] "+Te"(a1), [a2] "+Te"(a2), [a3] "+Te"(a3), [x] "+r"(x), [w0] "+r"(w0), [w1] "+r"(w1),
              [w2] "+r"(w2), [w3] "+r"(w3)
            : [n] "r"(in_c / HTPW_MVE_IN)
            : "q0", "q1", "q2", "lr", "memory");
    if (in_c % HTPW_MVE_IN != 0) {
        const mve_pred16_t p = vctp8q((uint32_t)(in_c % HTPW_MVE_IN));
        const int8x16_t v = vldrbq_z_s8(x, p);
        a0 = vmladavaq_s8(a0, v, vldrbq_z_s8(w0, p));
        a1 = vmladavaq_s8(a1, v, vldrbq_z_s8(w1, p));
        a2 = vmladavaq_s8(a2, v, vldrbq_z_s8(w2, p));
        a3 = vmladavaq_s8(a3, v, vldrbq_z_s8(w3, p));
    }
    return htpw_mve_gather(a0, a1, a2, a3);
}

/* What htpw_mve_pairs works on; the assembly knows the offsets. */
struct htpw_mve_pair {
    int32_t folded[4], multiplier[4], left[4], right[4], low[4], high[4]; /* 0, 16, 32, 48, 64, 80 */
    const int8_t *w;                                                     /* 96 */
    int32_t steps;                                                       /* 100 */
    int8_t *y;                                                           /* 104 */
    int32_t out_c;                                                       /* 108 */
    const int8_t *x;                                                     /* 112 */
    int32_t in_c, columns, pairs, out_offset;                            /* 116, 120 (in_c % 16), 124, 128 */
    uint32_t lanes; /* 132: predicate of the outputs that exist */
};

typedef char
    htpw_mve_pair_offsets[offsetof(struct htpw_mve_pair, w) == 96 && offsetof(struct htpw_mve_pair, lanes) == 132 ? 1
                                                                                                                  : -1];

/* One packed block of four outputs with `pairs` >= 1 pairs of rows of x. Eight sums take every even register, LR among them,
 * so that the inner loop cannot be a low-overhead one. */
__attribute__((naked, noinline)) static void htpw_mve_pairs(__attribute__((unused)) struct htpw_mve_pair *p) {
    __asm__ volatile("push    {r4-r11, lr}\n\t"
                     "vpush   {d8-d15}\n\t"
                     "mov     r11, r0\n\t"
                     "vldrw.32 q4, [r11, #16]\n\t"
                     "vldrw.32 q5, [r11, #32]\n\t"
                     "vldrw.32 q6, [r11, #48]\n\t"
                     "vldrw.32 q7, [r11, #80]\n\t"
                     "ldr     r1, [r11, #112]\n\t"
                     "ldr     r9, [r11, #124]\n"
                     "1:\n\t" /* a pair of rows at r1 and r3; sums in r0 r2 r4 r6 and r8 r10 r12 lr */
                     "ldrd    r0, r2, [r11]\n\t"
                     "ldrd    r4, r6, [r11, #8]\n\t"
                     "ldrd    r8, r10, [r11]\n\t"
                     "ldrd    r12, lr, [r11, #8]\n\t"
                     "ldr     r3, [r11, #116]\n\t"
                     "ldrd    r5, r7, [r11, #96]\n\t"
                     "add     r3, r1\n\t"
                     "subs    r7, #1\n\t"
                     "blt     3f\n"
                     "2:\n\t" /* 16 columns */
                     "vldrb.8 q0, [r1], #16\n\t"
                     "vldrb.8 q2, [r5], #16\n\t"
                     "vmladava.s8 r0, q0, q2\n\t"
                     "vldrb.8 q1, [r3], #16\n\t"
                     "vmladava.s8 r8, q1, q2\n\t"
                     "vldrb.8 q3, [r5], #16\n\t"
                     "vmladava.s8 r2, q0, q3\n\t"
                     "vldrb.8 q2, [r5], #16\n\t"
                     "vmladava.s8 r10, q1, q3\n\t"
                     "vldrb.8 q3, [r5], #16\n\t"
                     "vmladava.s8 r4, q0, q2\n\t"
                     "vmladava.s8 r12, q1, q2\n\t"
                     "vmladava.s8 r6, q0, q3\n\t"
                     "vmladava.s8 lr, q1, q3\n\t"
                     "subs    r7, #1\n\t"
                     "bge     2b\n"
                     "3:\n\t" /* the columns that are left: those beyond x are not read; in w they are there, and 0 */
                     "ldr     r7, [r11, #120]\n\t"
                     "cbz     r7, 4f\n\t"
                     "vctp.8  r7\n\t"
                     "vpstt\n\t"
                     "vldrbt.8 q0, [r1]\n\t"
                     "vldrbt.8 q1, [r3]\n\t"
                     "vldrb.8 q2, [r5]\n\t"
                     "vldrb.8 q3, [r5, #16]\n\t"
                     "vmladava.s8 r0, q0, q2\n\t"
                     "vmladava.s8 r8, q1, q2\n\t"
                     "vldrb.8 q2, [r5, #32]\n\t"
                     "vmladava.s8 r2, q0, q3\n\t"
                     "vmladava.s8 r10, q1, q3\n\t"
                     "vldrb.8 q3, [r5, #48]\n\t"
                     "vmladava.s8 r4, q0, q2\n\t"
                     "vmladava.s8 r12, q1, q2\n\t"
                     "vmladava.s8 r6, q0, q3\n\t"
                     "vmladava.s8 lr, q1, q3\n\t"
                     "add     r3, r7\n"
                     "4:\n\t" /* requantisation, as htpw_mve_requantise and htpw_mve_output */
                     "vmov    q0[2], q0[0], r0, r4\n\t"
                     "vmov    q0[3], q0[1], r2, r6\n\t"
                     "vmov    q1[2], q1[0], r8, r12\n\t"
                     "vmov    q1[3], q1[1], r10, lr\n\t"
                     "vshl.s32 q0, q0, q5\n\t"
                     "vshl.s32 q1, q1, q5\n\t"
                     "vqrdmulh.s32 q0, q0, q4\n\t"
                     "vqrdmulh.s32 q1, q1, q4\n\t"
                     "vand    q2, q0, q6\n\t"
                     "vand    q3, q1, q6\n\t"
                     "vshr.s32 q2, q2, #31\n\t"
                     "vshr.s32 q3, q3, #31\n\t"
                     "vadd.i32 q0, q0, q2\n\t"
                     "vadd.i32 q1, q1, q3\n\t"
                     "vrshl.s32 q0, q0, q6\n\t"
                     "vrshl.s32 q1, q1, q6\n\t"
                     "ldr     r0, [r11, #128]\n\t"
                     "vldrw.32 q2, [r11, #64]\n\t"
                     "vadd.i32 q0, q0, r0\n\t"
                     "vadd.i32 q1, q1, r0\n\t"
                     "vmax.s32 q0, q0, q2\n\t"
                     "vmax.s32 q1, q1, q2\n\t"
                     "vmin.s32 q0, q0, q7\n\t"
                     "vmin.s32 q1, q1, q7\n\t"
                     "ldr     r0, [r11, #132]\n\t"
                     "vmsr    p0, r0\n\t"
                     "ldrd    r5, r7, [r11, #104]\n\t"
                     "add     r2, r5, r7\n\t"
                     "vpstt\n\t"
                     "vstrbt.32 q0, [r5]\n\t"
                     "vstrbt.32 q1, [r2]\n\t"
                     "add     r2, r7\n\t"
                     "str     r2, [r11, #104]\n\t"
                     "mov     r1, r3\n\t" /* behind the second row begins the next pair */
                     "subs    r9, #1\n\t"
                     "bne     1b\n\t"
                     "vpop    {d8-d15}\n\t"
                     "pop     {r4-r11, pc}");
}

void htpw_mve_packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                     const int8_t *x, const void *packed, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    const size_t block = ((size_t)in_c + HTPW_MVE_IN - 1) / HTPW_MVE_IN * HTPW_MVE_OUT * HTPW_MVE_IN;
    const size_t blocks = ((size_t)out_c + HTPW_MVE_OUT - 1) / HTPW_MVE_OUT;
    const int8_t *w = (const int8_t *)packed;
    const int32_t *sums = (const int32_t *)(const void *)(w + blocks * block);
    const size_t done = (size_t)rows & ~(size_t)1; /* rows that go by pairs */
    struct htpw_mve_outputs out;
    struct htpw_mve_pair p;
    htpw_mve_outputs_open(&out, q, bias);
    p.steps = in_c / HTPW_MVE_IN;
    p.columns = in_c % HTPW_MVE_IN;
    p.in_c = in_c;
    p.out_c = out_c;
    p.x = x;
    p.pairs = rows / 2;
    p.out_offset = q->out_offset;
    vstrwq_s32(p.low, vdupq_n_s32(q->act_min));
    vstrwq_s32(p.high, vdupq_n_s32(q->act_max));
    for (int32_t left = out_c; left > 0; left -= HTPW_MVE_OUT, w += block, sums += HTPW_MVE_OUT, y += HTPW_MVE_OUT) {
        const mve_pred16_t lanes = vctp32q((uint32_t)left);
        int32x4_t folded = htpw_mve_words_next(&out.bias, lanes);
        const int32x4_t multiplier = htpw_mve_words_next(&out.multiplier, lanes);
        const struct htpw_mve_scale scale = htpw_mve_split(multiplier, htpw_mve_words_next(&out.shift, lanes));
        folded = vmlaq_n_s32(folded, vldrwq_s32(sums), in_offset);
        if (done != 0) {
            vstrwq_s32(p.folded, folded);
            vstrwq_s32(p.multiplier, scale.multiplier);
            vstrwq_s32(p.left, scale.left);
            vstrwq_s32(p.right, scale.right);
            p.lanes = lanes;
            p.w = w;
            p.y = y;
            htpw_mve_pairs(&p);
        }
        if (done != (size_t)rows) {
            const int32x4_t sum = vaddq_s32(htpw_mve_dot_packed(in_c, x + done * (size_t)in_c, w), folded);
            htpw_mve_store(y + done * (size_t)out_c, htpw_mve_requantise(sum, &scale), q, lanes);
        }
    }
}

/* Sums of four rows of w. */
HTPW_MVE_INLINE int32x4_t htpw_mve_sums(int32_t in_c, const int8_t *w0, const int8_t *w1, const int8_t *w2,
                                        const int8_t *w3) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    for (int32_t n = in_c / HTPW_MVE_IN; n > 0; n--) {
        a0 = vaddvaq_s8(a0, vldrbq_s8(w0));
        a1 = vaddvaq_s8(a1, vldrbq_s8(w1));
        a2 = vaddvaq_s8(a2, vldrbq_s8(w2));
        a3 = vaddvaq_s8(a3, vldrbq_s8(w3));
        w0 += HTPW_MVE_IN;
        w1 += HTPW_MVE_IN;
        w2 += HTPW_MVE_IN;
        w3 += HTPW_MVE_IN;
    }
    if (in_c % HTPW_MVE_IN != 0) {
        const mve_pred16_t p = vctp8q((uint32_t)(in_c % HTPW_MVE_IN));
        a0 = vaddvaq_s8(a0, vldrbq_z_s8(w0, p));
        a1 = vaddvaq_s8(a1, vldrbq_z_s8(w1, p));
        a2 = vaddvaq_s8(a2, vldrbq_z_s8(w2, p));
        a3 = vaddvaq_s8(a3, vldrbq_z_s8(w3, p));
    }
    return htpw_mve_gather(a0, a1, a2, a3);
}

/* Rows of x that begin `pitch` apart, with w row-major. */
static void htpw_mve_matrix(int32_t rows, size_t pitch, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                            int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    const size_t row = (size_t)in_c;
    struct htpw_mve_outputs out;
    htpw_mve_outputs_open(&out, q, bias);
    for (int32_t left = out_c; left > 0; left -= HTPW_MVE_OUT, w += HTPW_MVE_OUT * row, y += HTPW_MVE_OUT) {
        /* the last row stands in for those beyond it, whose sums are dropped */
        const int8_t *w1 = left > 1 ? w + row : w, *w2 = left > 2 ? w1 + row : w1, *w3 = left > 3 ? w2 + row : w2;
        const mve_pred16_t lanes = vctp32q((uint32_t)left);
        int32x4_t folded = htpw_mve_words_next(&out.bias, lanes);
        const int32x4_t multiplier = htpw_mve_words_next(&out.multiplier, lanes);
        const struct htpw_mve_scale scale = htpw_mve_split(multiplier, htpw_mve_words_next(&out.shift, lanes));
        if (in_offset != 0) {
            folded = vmlaq_n_s32(folded, htpw_mve_sums(in_c, w, w1, w2, w3), in_offset);
        }
        const int8_t *xr = x;
        int8_t *yr = y;
        for (int32_t r = rows; r > 0; r--, xr += pitch, yr += out_c) {
            const int32x4_t sum = vaddq_s32(htpw_mve_dot(in_c, xr, w, w1, w2, w3), folded);
            htpw_mve_store(yr, htpw_mve_requantise(sum, &scale), q, lanes);
        }
    }
}

void htpw_mve_conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                      const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_mve_matrix(rows, (size_t)in_c, in_c, out_c, q, in_offset, x, w, bias, y);
}

/* One signal: the windows inside the input are rows of a matrix that overlap, unless dilation or groups leave gaps in them.
 * Those over an edge, and images, are the reference's. */
void htpw_mve_conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                   const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    const struct htpw_taps inside = htpw_mve_inside(g->out_w, g->k_w, 1, g->stride_w, g->pad_left, g->in_w);
    const int32_t beyond = inside.end * g->stride_w - g->pad_left; /* where the windows over the right edge begin */
    if (g->in_h != 1 || g->out_h != 1 || g->k_h != 1 || g->pad_top != 0 || g->groups != 1 || g->dil_w != 1 ||
        inside.first >= inside.end || beyond >= g->in_w) {
        htpw_conv_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    struct htpw_window left = *g, right = *g;
    left.n = right.n = 1;
    left.out_w = inside.first;
    right.out_w = g->out_w - inside.end;
    right.in_w = g->in_w - beyond;
    right.pad_left = 0;
    const size_t pitch = (size_t)g->stride_w * (size_t)g->in_c;
    for (int32_t n = 0; n < g->n; n++) {
        const int8_t *xn = x + htpw_cell(n, 0, 0, 1, g->in_w, g->in_c);
        int8_t *yn = y + htpw_cell(n, 0, 0, 1, g->out_w, g->out_c);
        htpw_conv_s8_ref(&left, q, in_offset, xn, w, bias, yn);
        htpw_mve_matrix(inside.end - inside.first, pitch, g->k_w * g->in_c, g->out_c, q, in_offset,
                        xn + htpw_cell(0, 0, inside.first * g->stride_w - g->pad_left, 0, 0, g->in_c), w, bias,
                        yn + htpw_cell(0, 0, inside.first, 0, 0, g->out_c));
        htpw_conv_s8_ref(&right, q, in_offset, xn + htpw_cell(0, 0, beyond, 0, 0, g->in_c), w, bias,
                         yn + htpw_cell(0, 0, inside.end, 0, 0, g->out_c));
    }
}

#endif
