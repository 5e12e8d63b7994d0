/* htpw_mve_synth.c - synthesis with Helium: four tiles at a time, from packed codes to the weights of the cache.
 *
 * The vectors x of four tiles stay in registers while all rows of weights pass by, in the layout of the cache, filled up to
 * 16 columns; what x holds beyond its columns meets zeros. Sums of four tiles make a vector, so that four rows give a word of
 * four neighbouring weights for each tile, which one instruction scatters.
 *
 * VQRDMULH by M is step 2 of SPEC section 2. Step 3, R >= 1, is VQRDMULH by +-(2^(31-R) + 1): to nearest of
 * h / 2^R + h / 2^31, whose second term moves ties, and nothing else, away from zero as long as |h| < 2^(31-R), because all
 * other h are 2^-R or more away from their limit. For R <= 11 and larger |h| the result is beyond 2^9 and still clamped.
 * Heads use the minus: -y, limited to int8, and negated by VQNEG, which limits again, is y in -127 .. 127.
 */
#include "htpw_mve.h"

#ifdef HTPW_HAS_ARMV81M_MVE

#define HTPW_MVE_COLS 16

/* What one layer does with some groups of four tiles; the assembly knows the offsets and changes all but the first. */
struct htpw_mve_synth {
    int32_t sum[8];              /* 0 */
    int32_t multiplier, power;   /* 32, 36 */
    const int8_t *w;             /* 40 */
    uint32_t count;              /* 44: of 16 rows (head) or 4 */
    const int8_t *x;             /* 48 */
    uint32_t pitch;              /* 52: from one tile's x to the next */
    int8_t *const *y;            /* 56 */
    uint32_t fours;              /* 60: of tiles */
    uint32_t step;               /* 64: from 16 (4) rows of y to the next */
    const int32_t *bias;         /* 68 */
    uint32_t unused[2];
    uint32_t at[4];              /* 80: where the next rows go */
    uint8_t column[16];          /* 96: of the columns of x, from its first one */
};

typedef char htpw_mve_synth_offsets[offsetof(struct htpw_mve_synth, column) == 96 ? 1 : -1];

#define HTPW_MVE_ENTER                                                                                                 \
    "push    {r4-r11, lr}\n\t"                                                                                         \
    "vpush   {d8-d15}\n\t"                                                                                             \
    "mov     r7, r0\n\t"                                                                                               \
    "ldrd    r3, r5, [r7, #32]\n"                                                                                      \
    "1:\n\t"                                                                                                           \
    "ldrd    r1, r9, [r7, #48]\n\t"                                                                                    \
    "vldrb.8 q0, [r7, #96]\n\t"                                                                                        \
    "vldrb.u8 q4, [r1, q0]\n\t"                                                                                        \
    "add     r1, r9\n\t"                                                                                               \
    "vldrb.u8 q5, [r1, q0]\n\t"                                                                                        \
    "add     r1, r9\n\t"                                                                                               \
    "vldrb.u8 q6, [r1, q0]\n\t"                                                                                        \
    "add     r1, r9\n\t"                                                                                               \
    "vldrb.u8 q7, [r1, q0]\n\t"                                                                                        \
    "add     r1, r9\n\t"                                                                                               \
    "str     r1, [r7, #48]\n\t"                                                                                        \
    "ldr     r1, [r7, #56]\n\t"                                                                                        \
    "vldrw.32 q1, [r1], #16\n\t"                                                                                       \
    "str     r1, [r7, #56]\n\t"                                                                                        \
    "vstrw.32 q1, [r7, #80]\n\t"                                                                                       \
    "ldrd    r1, r11, [r7, #40]\n\t"

#define HTPW_MVE_LEAVE                                                                                                 \
    "ldr     r0, [r7, #60]\n\t"                                                                                        \
    "subs    r0, #1\n\t"                                                                                               \
    "str     r0, [r7, #60]\n\t"                                                                                        \
    "bne.w   1b\n\t"                                                                                                   \
    "vpop    {d8-d15}\n\t"                                                                                             \
    "pop     {r4-r11, pc}"

/* Two rows; half: b or t, the halves of q2 (rows 0, 2) and q3 (rows 1, 3) that they become. */
#define HTPW_MVE_TWO(half, bias)                                                                                       \
    "vldrb.8 q0, [r1], #16\n\t"                                                                                        \
    "vldrb.8 q1, [r1], #16\n\t"                                                                                        \
    "vmladav.s8 r0, q4, q0\n\t"                                                                                        \
    "vmladav.s8 r2, q5, q0\n\t"                                                                                        \
    "vmladav.s8 r4, q6, q0\n\t"                                                                                        \
    "vmladav.s8 r6, q7, q0\n\t"                                                                                        \
    "vmladav.s8 r8, q4, q1\n\t"                                                                                        \
    "vmladav.s8 r10, q5, q1\n\t"                                                                                       \
    "vmladav.s8 r12, q6, q1\n\t"                                                                                       \
    "vmladav.s8 lr, q7, q1\n\t"                                                                                        \
    "stm     r7, {r0, r2, r4, r6, r8, r10, r12, lr}\n\t" /* three instructions; four VMOV would do the same */         \
    "vldrw.32 q0, [r7]\n\t"                                                                                            \
    "vldrw.32 q1, [r7, #16]\n\t" bias                                                                                  \
    "vqrdmulh.s32 q0, q0, r3\n\t"                                                                                      \
    "vqrdmulh.s32 q1, q1, r3\n\t"                                                                                      \
    "vqrdmulh.s32 q0, q0, r5\n\t"                                                                                      \
    "vqrdmulh.s32 q1, q1, r5\n\t"                                                                                      \
    "vqmovn" half ".s32 q2, q0\n\t"                                                                                    \
    "vqmovn" half ".s32 q3, q1\n\t"

/* Four rows: the bytes of q2 and q3, limited, as words of each tile to their places. */
#define HTPW_MVE_FOUR(bias, limit, place)                                                                              \
    HTPW_MVE_TWO("b", bias)                                                                                            \
    HTPW_MVE_TWO("t", bias)                                                                                            \
    "vqmovnb.s16 q0, q2\n\t"                                                                                           \
    "vqmovnt.s16 q0, q3\n\t" limit                                                                                     \
    "vldrw.32 q1, [r7, #80]\n\t"                                                                                       \
    "vstrw.32 q0, [q1, #" #place "]\n\t"

#define HTPW_MVE_NEXT                                                                                                  \
    "ldr     r0, [r7, #64]\n\t"                                                                                        \
    "vadd.i32 q1, q1, r0\n\t"                                                                                          \
    "vstrw.32 q1, [r7, #80]\n\t"                                                                                       \
    "subs    r11, #1\n\t"                                                                                              \
    "bne.w   2b\n\t"

#define HTPW_MVE_NEGATE "vqneg.s8 q0, q0\n\t"

__attribute__((naked, noinline)) static void htpw_mve_synth_head(struct htpw_mve_synth *s __attribute__((unused))) {
    __asm__ volatile(HTPW_MVE_ENTER "2:\n\t" HTPW_MVE_FOUR("", HTPW_MVE_NEGATE, 0) HTPW_MVE_FOUR("", HTPW_MVE_NEGATE, 4)
                         HTPW_MVE_FOUR("", HTPW_MVE_NEGATE, 8) HTPW_MVE_FOUR("", HTPW_MVE_NEGATE, 12)
                             HTPW_MVE_NEXT HTPW_MVE_LEAVE);
}

#define HTPW_MVE_BIAS                                                                                                  \
    "ldrd    r0, r2, [r9], #8\n\t"                                                                                     \
    "vadd.i32 q0, q0, r0\n\t"                                                                                          \
    "vadd.i32 q1, q1, r2\n\t"

/* Doubled as an unsigned number, with what is below 0 made 0, then halved again. */
#define HTPW_MVE_POSITIVE                                                                                              \
    "vqshlu.s8 q0, q0, #1\n\t"                                                                                         \
    "vshr.u8 q0, q0, #1\n\t"

__attribute__((naked, noinline)) static void htpw_mve_synth_hidden(struct htpw_mve_synth *s __attribute__((unused))) {
    __asm__ volatile(HTPW_MVE_ENTER "ldr     r9, [r7, #68]\n"
                                    "2:\n\t" HTPW_MVE_FOUR(HTPW_MVE_BIAS, HTPW_MVE_POSITIVE, 0)
                                        HTPW_MVE_NEXT HTPW_MVE_LEAVE);
}

/* The first layer, where sums of codes fit 16 bits: eight tiles in lanes, columns in q0 to q5 and, if there are more, in
 * stack, a row of weights in core registers. VQRDMULH by the image's 16-bit multiplier is step 2, VRSHL step 3, since the
 * clamp at 0 makes no matter of negative ties. Doubled seven bits more and back, as unsigned numbers, is the clamp. */
struct htpw_mve_first {
    const int8_t *x;     /* 0: codes, tile after tile */
    const int32_t *w;    /* 4: per row its columns, filled up to those of the routine, and its bias */
    int8_t *y;           /* 8: row o of 16 tiles at y + 16 * o */
    uint32_t rows;       /* 12 */
    uint32_t eights;     /* 16: of tiles */
    uint32_t step;       /* 20: bytes of codes of eight tiles */
    int32_t multiplier;  /* 24: 16 bits */
    int32_t shift;       /* 28 */
    uint16_t tile[8];    /* 32: of the tiles, from the first one */
};

#define HTPW_MVE_COLUMN(q)                                                                                             \
    "vldrb.s16 " q ", [r1, q7]\n\t"                                                                                    \
    "add     r1, #1\n\t"

#define HTPW_MVE_FIRST(name, spill, weights, products)                                                                 \
    __attribute__((naked, noinline)) static void name(struct htpw_mve_first *f __attribute__((unused))) {              \
        __asm__ volatile("push    {r4-r11, lr}\n\t"                                                                    \
                         "vpush   {d8-d15}\n\t"                                                                        \
                         "sub     sp, #44\n"                                                                           \
                         "1:\n\t"                                                                                      \
                         "ldr     r1, [r0]\n\t"                                                                        \
                         "ldr     r2, [r0, #20]\n\t"                                                                   \
                         "add     r2, r1\n\t"                                                                          \
                         "str     r2, [r0]\n\t"                                                                        \
                         "vldrh.16 q7, [r0, #32]\n\t" HTPW_MVE_COLUMN("q0") HTPW_MVE_COLUMN("q1")                      \
                             HTPW_MVE_COLUMN("q2") HTPW_MVE_COLUMN("q3") HTPW_MVE_COLUMN("q4") HTPW_MVE_COLUMN("q5")   \
                                 spill "ldrd    r9, r10, [r0, #4]\n\t"                                                 \
                         "add     r2, r10, #8\n\t"                                                                     \
                         "str     r2, [r0, #8]\n\t"                                                                    \
                         "ldr     lr, [r0, #12]\n\t"                                                                   \
                         "str     r0, [sp, #32]\n\t"                                                                   \
                         "mov     r12, r10\n\t"                                                                        \
                         "ldrd    r11, r10, [r0, #24]\n\t"                                                             \
                         "mov     r0, r12\n"                                                                           \
                         "2:\n\t"                                                                                      \
                         "ldm     r9!, {" weights ", r12}\n\t"                                                         \
                         "vdup.16 q7, r12\n\t"                                                                         \
                         "vmla.s16 q7, q0, r1\n\t"                                                                     \
                         "vmla.s16 q7, q1, r2\n\t"                                                                     \
                         "vmla.s16 q7, q2, r3\n\t"                                                                     \
                         "vmla.s16 q7, q3, r4\n\t" products                                                            \
                         "vqrdmulh.s16 q7, q7, r11\n\t"                                                                \
                         "vrshl.s16 q7, r10\n\t"                                                                       \
                         "vqshlu.s16 q7, q7, #9\n\t"                                                                   \
                         "vshr.u16 q7, q7, #9\n\t"                                                                     \
                         "vstrb.16 q7, [r0], #16\n\t"                                                                  \
                         "le      lr, 2b\n\t"                                                                          \
                         "ldr     r0, [sp, #32]\n\t"                                                                   \
                         "ldr     r1, [r0, #16]\n\t"                                                                   \
                         "subs    r1, #1\n\t"                                                                          \
                         "str     r1, [r0, #16]\n\t"                                                                   \
                         "bne.w   1b\n\t"                                                                              \
                         "add     sp, #44\n\t"                                                                         \
                         "vpop    {d8-d15}\n\t"                                                                        \
                         "pop     {r4-r11, pc}");                                                                      \
    }

#define HTPW_MVE_SIX                                                                                                   \
    "vmla.s16 q7, q4, r5\n\t"                                                                                          \
    "vmla.s16 q7, q5, r6\n\t"

HTPW_MVE_FIRST(htpw_mve_first_4, "", "r1-r4", "")
HTPW_MVE_FIRST(htpw_mve_first_6, "", "r1-r6", HTPW_MVE_SIX)
HTPW_MVE_FIRST(htpw_mve_first_8,
               HTPW_MVE_COLUMN("q6") "vstrw.32 q6, [sp]\n\t" HTPW_MVE_COLUMN("q6") "vstrw.32 q6, [sp, #16]\n\t",
               "r1-r8",
               "vldrw.32 q6, [sp]\n\t" HTPW_MVE_SIX "vmla.s16 q7, q6, r7\n\t"
               "vldrw.32 q6, [sp, #16]\n\t"
               "vmla.s16 q7, q6, r8\n\t")

#define HTPW_MVE_FIRST_COLS 8

/* Heads of up to four columns behind such a first layer, in its 16-bit lanes. Sums of two products with x >= 0 fit
 * (|.| <= 2 * 127 * 128 < 2^15); adding two of those saturates, which htpw_mve_narrow_start knows to be of no matter.
 * VQDMLAH by 1 takes 1 off h where the sum is negative, so that VRSHL moves ties away from zero. VQNEG twice makes -127 of -128. */
struct htpw_mve_narrow {
    const int8_t *x;    /* 0: column i of 8 tiles at x + 16 * i */
    const int32_t *w;   /* 4: four columns per row */
    int8_t *y;          /* 8: the lowest address of the tiles */
    uint32_t count;     /* 12: of 16 rows */
    uint32_t step;      /* 16: from 16 rows of y to the next */
    int32_t multiplier; /* 20: 16 bits */
    int32_t shift;      /* 24 */
    uint32_t unused;
    uint16_t tile[8];   /* 32: of the tiles from y */
};

#define HTPW_MVE_NARROW_ROW(half)                                                                                      \
    "ldm     r9!, {r1-r4}\n\t"                                                                                         \
    "vmul.i16 q5, q0, r1\n\t"                                                                                          \
    "vmla.s16 q5, q1, r2\n\t"                                                                                          \
    "vmul.i16 q6, q2, r3\n\t"                                                                                          \
    "vmla.s16 q6, q3, r4\n\t"                                                                                          \
    "vqadd.s16 q5, q5, q6\n\t"                                                                                         \
    "vqrdmulh.s16 q6, q5, r10\n\t"                                                                                     \
    "vqdmlah.s16 q6, q5, r12\n\t"                                                                                      \
    "vrshl.s16 q6, r11\n\t"                                                                                            \
    "vqmovn" half ".s16 q7, q6\n\t"

__attribute__((naked, noinline)) static void htpw_mve_narrow(const struct htpw_mve_narrow *n __attribute__((unused))) {
    __asm__ volatile("push    {r4-r11, lr}\n\t"
                     "vpush   {d8-d15}\n\t"
                     "ldr     r1, [r0]\n\t"
                     "vldrb.u16 q0, [r1]\n\t"
                     "vldrb.u16 q1, [r1, #16]\n\t"
                     "vldrb.u16 q2, [r1, #32]\n\t"
                     "vldrb.u16 q3, [r1, #48]\n\t"
                     "vldrh.16 q4, [r0, #32]\n\t"
                     "ldrd    r9, r5, [r0, #4]\n\t"
                     "ldrd    r6, r7, [r0, #12]\n\t"
                     "ldrd    r10, r11, [r0, #20]\n\t"
                     "mov     r12, #1\n"
                     "1:\n\t"
                     "mov     lr, #8\n\t"
                     "mov     r8, r5\n"
                     "2:\n\t" HTPW_MVE_NARROW_ROW("b") HTPW_MVE_NARROW_ROW("t")
                     "vqneg.s8 q7, q7\n\t"
                     "vqneg.s8 q7, q7\n\t"
                     "vstrh.16 q7, [r8, q4]\n\t"
                     "add     r8, #2\n\t"
                     "le      lr, 2b\n\t"
                     "add     r5, r7\n\t"
                     "subs    r6, #1\n\t"
                     "bne.w   1b\n\t"
                     "vpop    {d8-d15}\n\t"
                     "pop     {r4-r11, pc}");
}

/* Whether a layer can be done exactly. */
static int htpw_mve_synth_fits(const struct htpw_synth_layer *layer, int is_head) {
    const uint32_t most = (uint32_t)layer->cols * (128u * 128u) + layer->bias_max; /* |v| and so |h| */
    const int32_t right = -layer->shift;
    if (!layer->is_packed || layer->cols > HTPW_MVE_COLS || right < 1 ||
        (right > 11 && most >= UINT32_C(1) << (31 - right))) {
        return 0;
    }
    return is_head ? layer->biases == NULL && layer->act_min == -127 && layer->act_max == 127
                   : layer->rows <= HTPW_MVE_COLS && layer->act_min == 0 && layer->act_max == 127;
}

/* Scratch of a job. */
struct htpw_mve_synth_scratch {
    int32_t bias[HTPW_GENERATOR_LAYERS_MAX][HTPW_MVE_COLS];
    int8_t x[2][HTPW_SYNTH_TILES_MAX * HTPW_MVE_COLS + 32]; /* codes, outputs of hidden layers; used in turn */
    int8_t *y[2][HTPW_SYNTH_TILES_MAX];                     /* where the outputs of each tile go in x */
    struct htpw_mve_first first;                            /* rows is 0 if it cannot be used */
    int32_t w[HTPW_MVE_COLS * (HTPW_MVE_FIRST_COLS + 1)];   /* of the first layer */
    uint8_t near[16], far[16];                              /* columns of x, tile after tile, column after column */
};

typedef char htpw_mve_synth_scratch_fits[sizeof(struct htpw_mve_synth_scratch) <= 1600 ? 1 : -1];

/* Prepares the first layer for htpw_mve_first_*; its weights are packed, in rows of 16. */
static void htpw_mve_first_start(const struct htpw_synth_job *job, struct htpw_mve_synth_scratch *own) {
    const struct htpw_synth_layer *layer = job->layer;
    const uint32_t most = (job->dz << (job->code_bits - 1u)) * 128u + layer->bias_max; /* of |v| */
    const int8_t *w = (const int8_t *)layer->weights;
    int32_t *to = own->w;
    own->first.rows = 0;
    if (job->dz > HTPW_MVE_FIRST_COLS || most > 32767u) {
        return;
    }
    for (int32_t o = 0; o < layer->rows; o++, w += HTPW_MVE_COLS) {
        vstrwq_s32(to, vldrbq_s32(w));
        to += 4;
        if (job->dz > 4) {
            vstrwq_s32(to, vldrbq_s32(w + 4));
            to += job->dz > 6 ? 4 : 2;
        }
        *to++ = own->bias[0][o];
    }
    own->first.rows = (uint32_t)layer->rows;
    own->first.step = 8u * job->dz;
    own->first.multiplier = layer->multiplier >> 16;
    own->first.shift = layer->shift;
    for (uint32_t t = 0; t < 8u; t++) {
        own->first.tile[t] = (uint16_t)(t * job->dz);
    }
}

/* Whether a head can go by htpw_mve_narrow; if so, widens its packed weights, in rows of 16 bytes, to rows of four words. */
static int htpw_mve_narrow_start(const struct htpw_synth_job *job, const struct htpw_mve_synth_scratch *own) {
    const struct htpw_synth_layer *layer = &job->layer[job->layers - 1u];
    const int32_t m = layer->multiplier >> 16, right = -layer->shift;
    if (own->first.rows == 0 || job->layers != 2 || layer->cols > 4 || job->span > 65536u) {
        return 0;
    }
    /* what saturates is limited to +-127 anyway, or 65536 / 4 > 127 * 128 leaves nothing to saturate */
    const int is_limited = right <= 15 && (32767 * m >> 15) >= (127 << right);
    const int8_t *packed = (const int8_t *)layer->weights;
    for (int32_t o = 0; !is_limited && o < layer->rows; o++) {
        int32_t more = 0, less = 0;
        for (int32_t i = 0; i < layer->cols; i++) {
            const int32_t w = packed[o * HTPW_MVE_COLS + i];
            more += w > 0 ? w : 0;
            less -= w < 0 ? w : 0;
        }
        if (more > 258 || less > 258) {
            return 0;
        }
    }
    int8_t *w = (int8_t *)(uintptr_t)layer->weights; /* scratch of synthesis, which nobody else reads from now on */
    for (int32_t o = 0; o < layer->rows; o++, w += HTPW_MVE_COLS) {
        vstrwq_s32((int32_t *)(void *)w, vldrbq_s32(w));
    }
    return 1;
}

/* y of 8 tiles of a head. */
static void htpw_mve_narrow_run(const struct htpw_synth_layer *layer, const int8_t *x, int8_t *const *y, uint32_t step) {
    struct htpw_mve_narrow n;
    const uint32x4_t a = vldrwq_u32((const uint32_t *)(const void *)y), b = vldrwq_u32((const uint32_t *)(const void *)(y + 4));
    const uint32_t low = vminvq_u32(vminvq_u32(UINT32_MAX, a), b);
    vstrhq_u32(n.tile, vsubq_n_u32(a, low));
    vstrhq_u32(n.tile + 4, vsubq_n_u32(b, low));
    n.x = x;
    n.w = (const int32_t *)layer->weights;
    n.y = (int8_t *)(uintptr_t)low;
    n.count = ((uint32_t)layer->rows + 15u) / 16u;
    n.step = step;
    n.multiplier = layer->multiplier >> 16;
    n.shift = layer->shift;
    htpw_mve_narrow(&n);
}

static int htpw_mve_synth_start(const struct htpw_synth_job *job, struct htpw_mve_synth_scratch *own) {
    int32_t *bias = own->bias[0];
    if (job->layers < 2 || job->dz > HTPW_MVE_COLS) {
        return 0;
    }
    for (uint32_t t = 0; t < 16u; t++) {
        own->y[0][t] = own->x[0] + t * HTPW_MVE_COLS;
        own->y[1][t] = own->x[1] + t * HTPW_MVE_COLS;
        own->near[t] = (uint8_t)t;
        own->far[t] = (uint8_t)(16u * t);
    }
    for (uint32_t i = 0; i < job->layers; i++) {
        const struct htpw_synth_layer *layer = &job->layer[i];
        if (!htpw_mve_synth_fits(layer, i == job->layers - 1u)) {
            return 0;
        }
        for (int32_t o = 0; i < job->layers - 1u && o < HTPW_MVE_COLS; o++) {
            *bias++ = layer->biases != NULL && o < layer->rows ? layer->biases[o] : 0;
        }
    }
    htpw_mve_first_start(job, own);
    return htpw_mve_narrow_start(job, own) ? 2 : 1;
}

/* n codes of 4 bits, from a whole byte on, to int8; up to 31 bytes more are written. */
static void htpw_mve_nibbles(const uint8_t *p, uint32_t n, int8_t *to) {
    for (int32_t bytes = (int32_t)(n + 1u) / 2; bytes > 0; bytes -= 16, p += 16, to += 32) {
        const int8x16_t v = vldrbq_z_s8((const int8_t *)p, vctp8q((uint32_t)bytes));
        int8x16x2_t two;
        two.val[0] = vshrq_n_s8(vshlq_n_s8(v, 4), 4);
        two.val[1] = vshrq_n_s8(v, 4);
        vst2q_s8(to, two);
    }
}

/* All of a layer but its bias, and how x lies. rows: of weights that the routine takes at a time. */
HTPW_MVE_INLINE void htpw_mve_synth_set(struct htpw_mve_synth *s, const struct htpw_synth_layer *layer, const int8_t *x,
                                        int8_t *const *y, uint32_t fours, uint32_t rows, uint32_t step) {
    s->multiplier = layer->multiplier;
    s->power = (INT32_C(1) << (31 + layer->shift)) + 1;
    s->w = (const int8_t *)layer->weights;
    s->count = ((uint32_t)layer->rows + rows - 1u) / rows;
    s->x = x;
    s->y = y;
    s->fours = fours;
    s->step = step;
}

int htpw_mve_synth(struct htpw_synth_job *job, uint32_t tile, uint32_t tiles, int8_t **y, uint32_t step) {
    struct htpw_mve_synth_scratch *own = (struct htpw_mve_synth_scratch *)job->scratch;
    const uint32_t fours = (tiles + 3u) / 4u, codes = tiles * job->dz, first = tile * job->dz;
    uint32_t from = 0;
    struct htpw_mve_synth s;
    if (job->state == 0) {
        const int start = htpw_mve_synth_start(job, own);
        job->state = start != 0 ? start : -1;
    }
    if (job->state < 0) {
        return 0;
    }
    if (job->code_bits == 4 && first % 2u == 0) {
        htpw_mve_nibbles(job->codes + first / 2u, codes, own->x[0]);
    } else {
        htpw_values_read(job->codes, first, codes, job->code_bits, own->x[0]);
    }
    for (uint32_t t = tiles; t % 8u != 0; t++) { /* the last tile stands in for those that make up four or eight */
        y[t] = y[tiles - 1u];
        for (uint32_t i = 0; i < job->dz; i++) {
            own->x[0][t * job->dz + i] = own->x[0][(tiles - 1u) * job->dz + i];
        }
    }
    s.pitch = job->dz;
    vst1q_u8(s.column, vld1q_u8(own->near));
    uint32_t i = 0;
    if (own->first.rows != 0) {
        struct htpw_mve_first f = own->first;
        f.x = own->x[0];
        f.w = own->w;
        f.y = own->x[1];
        f.eights = (tiles + 7u) / 8u;
        (job->dz <= 4 ? htpw_mve_first_4 : job->dz <= 6 ? htpw_mve_first_6 : htpw_mve_first_8)(&f);
        for (uint32_t t = 0; job->state == 2 && t < tiles; t += 8u) {
            htpw_mve_narrow_run(&job->layer[1], own->x[1] + t, y + t, step);
        }
        if (job->state == 2) {
            return 1;
        }
        s.pitch = 1;
        vst1q_u8(s.column, vld1q_u8(own->far));
        from = 1;
        i = 1;
    }
    for (; i < job->layers - 1u; i++, from ^= 1u) {
        htpw_mve_synth_set(&s, &job->layer[i], own->x[from], own->y[from ^ 1u], fours, 4, 4);
        s.bias = own->bias[i];
        htpw_mve_synth_hidden(&s);
        s.pitch = HTPW_MVE_COLS;
        vst1q_u8(s.column, vld1q_u8(own->near));
    }
    htpw_mve_synth_set(&s, &job->layer[i], own->x[from], y, fours, 16, step); /* weights beyond the last row: no matter */
    s.power = -s.power;
    htpw_mve_synth_head(&s);
    return 1;
}

/* Rows of at most 16 columns, of which the last may end early, to one vector each, for htpw_layout_put. */
void htpw_mve_put_rows(uint32_t in_c, uint32_t count, const int8_t *w, int8_t *packed) {
    const mve_pred16_t whole = vctp8q(in_c);
    for (; count >= in_c; count -= in_c, w += in_c, packed += 16) {
        vstrbq_s8(packed, vldrbq_z_s8(w, whole)); /* and zeros behind */
    }
    vstrbq_p_s8(packed, vldrbq_z_s8(w, vctp8q(count)), vctp8q(count));
}

/* Row sums of packed int8 weights, block after block, for htpw_layout_finish. */
void htpw_mve_row_sums(uint32_t blocks, uint32_t steps, const int8_t *w, int32_t *sums) {
    for (; blocks > 0; blocks--, sums += 4) {
        int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
        for (uint32_t n = steps; n > 0; n--, w += 64) {
            a0 = vaddvaq_s8(a0, vldrbq_s8(w));
            a1 = vaddvaq_s8(a1, vldrbq_s8(w + 16));
            a2 = vaddvaq_s8(a2, vldrbq_s8(w + 32));
            a3 = vaddvaq_s8(a3, vldrbq_s8(w + 48));
        }
        sums[0] = a0;
        sums[1] = a1;
        sums[2] = a2;
        sums[3] = a3;
    }
}

#endif
