/* Generators and heads: the sections GENR and HEAD (docs/SPEC.md 4.5, 4.6). One function reads an entry of each head kind; what it
 * fills in, struct htpw_head, is all that synthesis knows of heads.
 *
 * Nothing is kept in memory: an entry is found by reading those before it. Synthesis does so once a kernel, running never.
 */
#include "htpw_internal.h"

/* A place in a section. Whoever takes more than is left gets NULL. */
struct htpw_reader {
    const uint8_t *p;
    uint32_t left;
};

static const uint8_t *htpw_read(struct htpw_reader *r, uint32_t bytes) {
    if (bytes > r->left) {
        return NULL;
    }
    const uint8_t *p = r->p;
    r->p += bytes;
    r->left -= bytes;
    return p;
}

static int htpw_width_is_valid(uint32_t bits) { return bits == 4 || bits == 6 || bits == 8; }

static int htpw_scale_is_valid(const struct htpw_matrix *m) {
    return m->shift >= -31 && m->shift <= 30 && m->multiplier <= 32767;
}

/* A matrix record. `cols` comes from its place. */
static HTPW_COLD int htpw_read_matrix(struct htpw_reader *r, uint32_t cols, struct htpw_matrix *m) {
    const uint8_t *p = htpw_read(r, 7);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    htpw_zero(m, sizeof *m);
    m->rows = htpw_load_u16(p);
    m->cols = (uint16_t)cols;
    m->weight_bits = p[2];
    m->bias_bits = p[3];
    m->shift = htpw_load_i8(p + 4);
    m->multiplier = htpw_load_u16(p + 5);
    if (m->rows == 0) {
        return HTPW_ERR_SHAPE;
    }
    if (!htpw_width_is_valid(m->weight_bits) || m->bias_bits > 32 || !htpw_scale_is_valid(m)) {
        return HTPW_ERR_RANGE;
    }
    m->weights = htpw_read(r, htpw_bits_bytes((uint32_t)m->rows * cols, m->weight_bits)); /* rows * cols <= 2^26 */
    m->biases = m->weights != NULL ? htpw_read(r, htpw_bits_bytes(m->rows, m->bias_bits)) : NULL;
    return m->biases != NULL ? HTPW_OK : HTPW_ERR_DATA;
}

/* Values of a matrix: the bound of SPEC section 7 for an input offset of 0, and zeros behind the packed arrays. */
static HTPW_COLD int htpw_matrix_check(const struct htpw_matrix *m) {
    uint32_t bias_max = 0;
    for (uint32_t i = 0; m->bias_bits != 0 && i < m->rows; i++) {
        const int32_t bias = htpw_bits_signed(m->biases, i, m->bias_bits);
        const uint32_t magnitude = bias < 0 ? 0u - (uint32_t)bias : (uint32_t)bias;
        bias_max = magnitude > bias_max ? magnitude : bias_max;
    }
    const uint64_t bound = (uint64_t)m->cols * (128u * 128u) + bias_max;
    const uint32_t left = m->shift > 0 ? (uint32_t)m->shift : 0u;
    if (bound >= HTPW_ACC_LIMIT || (bound << left) >= HTPW_ACC_LIMIT) {
        return HTPW_ERR_OVERFLOW;
    }
    if (!HTPW_WITH(LARGE) && htpw_matrix_is_large(m)) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_LARGE);
    }
    if (HTPW_WITH(SEEDED) && m->seed != 0) {
        return HTPW_OK;
    }
    return htpw_bits_tail_is_zero(m->weights, (uint32_t)m->rows * m->cols, m->weight_bits) &&
                   htpw_bits_tail_is_zero(m->biases, m->rows, m->bias_bits)
               ? HTPW_OK
               : HTPW_ERR_DATA;
}

static HTPW_COLD int htpw_read_generator(struct htpw_reader *r, struct htpw_generator *g) {
    const uint8_t *p = htpw_read(r, 3);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    g->layers = p[0];
    g->dz = g->width = htpw_load_u16(p + 1);
    if (g->layers > HTPW_GENERATOR_LAYERS_MAX) {
        return HTPW_ERR_SOURCE;
    }
    if (g->dz == 0 || g->dz > HTPW_WIDTH_MAX) {
        return HTPW_ERR_SHAPE;
    }
    for (uint32_t i = 0; i < g->layers; i++) {
        const int error = htpw_read_matrix(r, g->width, &g->layer[i]);
        if (error != HTPW_OK) {
            return error;
        }
        g->width = g->layer[i].rows;
        if (g->width > HTPW_WIDTH_MAX) {
            return HTPW_ERR_SHAPE;
        }
    }
    return HTPW_OK;
}

/* A section that begins with a count, of which `most` are allowed; *count is 0 if it is empty. */
static int htpw_read_count(struct htpw_span section, uint32_t most, struct htpw_reader *r, uint32_t *count) {
    r->p = section.data;
    r->left = section.length;
    *count = 0;
    if (section.length == 0) {
        return HTPW_OK;
    }
    *count = *htpw_read(r, 1);
    return *count != 0 && *count <= most ? HTPW_OK : HTPW_ERR_SOURCE;
}

HTPW_COLD int htpw_generator_load(const struct htpw_model *model, uint32_t index, struct htpw_generator *generator) {
    struct htpw_reader r;
    uint32_t count;
    int error = htpw_read_count(model->generators, HTPW_GENERATORS_MAX, &r, &count);
    if (error == HTPW_OK && index >= count) {
        error = HTPW_ERR_SOURCE;
    }
    for (uint32_t i = 0; error == HTPW_OK && i <= index; i++) {
        error = htpw_read_generator(&r, generator);
    }
    return error;
}

/* ---- one function per kind: reads what follows `kind, generator` ---- */

static HTPW_COLD int htpw_read_dense(struct htpw_reader *r, const struct htpw_generator *g, struct htpw_head *head) {
    const int error = htpw_read_matrix(r, g->width, &head->stage[0]);
    head->stages = 1;
    head->is_whole = 1;
    head->tile = head->stage[0].rows;
    return error;
}

static HTPW_COLD int htpw_read_tiled(struct htpw_reader *r, const struct htpw_generator *g, struct htpw_head *head) {
    const int error = htpw_read_matrix(r, g->width, &head->stage[0]);
    head->stages = 1;
    head->tile = head->stage[0].rows;
    return error;
}

static HTPW_COLD int htpw_read_factorised(struct htpw_reader *r, const struct htpw_generator *g,
                                          struct htpw_head *head) {
    const uint8_t *p = htpw_read(r, 4);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    const uint32_t rank = htpw_load_u16(p + 2);
    int error = rank != 0 && rank <= HTPW_WIDTH_MAX ? HTPW_OK : HTPW_ERR_SHAPE;
    head->stages = 2;
    head->is_whole = 1;
    for (uint32_t i = 0; error == HTPW_OK && i < 2; i++) { /* B, then A */
        head->shared[i] = p[i];
        head->stage[i].rows = head->stage[1].cols = (uint16_t)rank; /* until the shared one takes their place */
        if (p[i] == HTPW_OWN) {
            error = htpw_read_matrix(r, i == 0 ? g->width : rank, &head->stage[i]);
        }
        if (error == HTPW_OK && i == 0 && head->stage[0].rows != rank) {
            error = HTPW_ERR_SHAPE;
        }
    }
    head->tile = head->stage[1].rows;
    return error;
}

static HTPW_COLD int htpw_read_seeded(struct htpw_reader *r, const struct htpw_generator *g, struct htpw_head *head) {
    const uint8_t *p = htpw_read(r, 9);
    struct htpw_matrix *m = &head->stage[0];
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    m->rows = htpw_load_u16(p);
    m->cols = g->width;
    m->weight_bits = 8;
    m->shift = htpw_load_i8(p + 2);
    m->multiplier = htpw_load_u16(p + 3);
    m->seed = htpw_load_u32(p + 5);
    head->stages = 1;
    head->tile = m->rows;
    if (m->rows == 0 || (uint32_t)m->rows * m->cols > HTPW_TENSOR_MAX) { /* nine bytes must not ask for hours of work */
        return HTPW_ERR_SHAPE;
    }
    return m->seed != 0 && htpw_scale_is_valid(m) ? HTPW_OK : HTPW_ERR_RANGE;
}

static HTPW_COLD int htpw_read_codebook(struct htpw_reader *r, const struct htpw_generator *g, struct htpw_head *head) {
    const uint8_t *p = htpw_read(r, 3);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    head->shared[0] = p[0];
    head->entries = htpw_load_u16(p + 1);
    if (head->entries == 0 || head->entries > HTPW_ENTRIES_MAX) {
        return HTPW_ERR_RANGE;
    }
    const int is_made = head->shared[0] != HTPW_OWN;
    p = htpw_read(r, is_made ? 1 : 3);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    head->entry_bits = is_made ? p[0] : p[2];
    head->stages = is_made ? 1u : 0u;
    head->tile = is_made ? 0u : htpw_load_u16(p);
    if (!is_made && (head->tile == 0 || head->generator != 0)) {
        return head->tile == 0 ? HTPW_ERR_SHAPE : HTPW_ERR_SOURCE;
    }
    if (!htpw_width_is_valid(head->entry_bits) && (is_made || head->entry_bits != 2)) {
        return HTPW_ERR_RANGE;
    }
    if (!is_made && head->entry_bits == 6) {
        return HTPW_ERR_RANGE;
    }
    head->table = htpw_read(r, htpw_bits_bytes(head->entries * (is_made ? g->dz : head->tile), head->entry_bits));
    return head->table != NULL ? HTPW_OK : HTPW_ERR_DATA;
}

/* ---- entries and what they share ---- */

/* Reads the next entry of HEAD as it stands: shared stages are still empty. */
static HTPW_COLD int htpw_read_head(const struct htpw_model *model, struct htpw_reader *r, struct htpw_head *head) {
    struct htpw_generator generator;
    const uint8_t *p = htpw_read(r, 2);
    if (p == NULL) {
        return HTPW_ERR_DATA;
    }
    htpw_zero(head, sizeof *head);
    head->kind = p[0];
    head->generator = p[1];
    head->shared[0] = head->shared[1] = HTPW_OWN;
    const int error = htpw_generator_load(model, head->generator, &generator);
    if (error != HTPW_OK && (head->kind != HTPW_SOURCE_CODEBOOK || model->generators.length != 0)) {
        return error;
    }
    if (error !=
        HTPW_OK) { /* a codebook's table of weights needs no generator; one of codes is refused with its missing head */
        generator.dz = 0;
    }
    switch (head->kind) {
#define HTPW_HEAD_CASE(name, id, read)                                                                                 \
    case id:                                                                                                           \
        return HTPW_WITH(name) ? read(r, &generator, head) : HTPW_LEFT_OUT_SOURCE(id);
        HTPW_HEADS(HTPW_HEAD_CASE)
#undef HTPW_HEAD_CASE
    default:
        return HTPW_ERR_SOURCE;
    }
}

static HTPW_COLD int htpw_find_head(const struct htpw_model *model, uint32_t index, struct htpw_head *head) {
    struct htpw_reader r;
    uint32_t count;
    int error = htpw_read_count(model->heads, HTPW_HEADS_MAX, &r, &count);
    if (error == HTPW_OK && index >= count) {
        error = HTPW_ERR_SOURCE;
    }
    for (uint32_t i = 0; error == HTPW_OK && i <= index; i++) {
        error = htpw_read_head(model, &r, head);
    }
    return error;
}

HTPW_COLD int htpw_head_load(const struct htpw_model *model, uint32_t index, struct htpw_head *head) {
    struct htpw_head other;
    int error = htpw_find_head(model, index, head);
    const int is_codebook = HTPW_WITH(CODEBOOK) && error == HTPW_OK && head->kind == HTPW_SOURCE_CODEBOOK;
    const int may_share = HTPW_WITH(CODEBOOK) || HTPW_WITH(FACTORISED);
    for (uint32_t i = 0; may_share && error == HTPW_OK && i < head->stages; i++) {
        if (head->shared[i] == HTPW_OWN) {
            continue;
        }
        error = head->shared[i] < index ? htpw_find_head(model, head->shared[i], &other) : HTPW_ERR_SOURCE;
        if (error != HTPW_OK) {
            return error;
        }
        const int fits = is_codebook ? other.kind == HTPW_SOURCE_TILED || other.kind == HTPW_SOURCE_SEEDED
                                     : other.kind == head->kind && other.shared[i] == HTPW_OWN &&
                                           other.stage[0].rows == head->stage[0].rows;
        if (!fits || (i == 0 && other.generator != head->generator)) {
            return HTPW_ERR_SOURCE;
        }
        head->stage[i] = other.stage[i];
        head->tile = is_codebook || i == 1 ? other.tile : head->tile;
    }
    return error;
}

HTPW_COLD int htpw_heads_check(struct htpw_model *model) {
    struct htpw_reader r;
    struct htpw_generator g;
    struct htpw_head head;
    uint32_t count;
    int error = htpw_read_count(model->generators, HTPW_GENERATORS_MAX, &r, &count);
    for (uint32_t i = 0; error == HTPW_OK && i < count; i++) {
        error = htpw_read_generator(&r, &g);
        for (uint32_t k = 0; error == HTPW_OK && k < g.layers; k++) {
            error = htpw_matrix_check(&g.layer[k]);
        }
    }
    if (error == HTPW_OK && r.left != 0) {
        error = HTPW_ERR_DATA;
    }
    if (error == HTPW_OK) {
        error = htpw_read_count(model->heads, HTPW_HEADS_MAX, &r, &count);
    }
    model->head_count = error == HTPW_OK ? (uint8_t)count : 0u;
    for (uint32_t i = 0; error == HTPW_OK && i < count; i++) {
        error = htpw_read_head(model, &r, &head); /* for the end of the section; then with what it shares */
        error = error == HTPW_OK ? htpw_head_load(model, i, &head) : error;
        for (uint32_t k = 0; error == HTPW_OK && k < head.stages; k++) {
            error = htpw_matrix_check(&head.stage[k]);
        }
        if (HTPW_WITH(CODEBOOK) && error == HTPW_OK && head.table != NULL) {
            error = htpw_generator_load(model, head.generator, &g);
            const uint32_t row = head.stages != 0 ? g.dz : head.tile;
            error =
                head.stages == 0 || error == HTPW_OK
                    ? htpw_bits_tail_is_zero(head.table, head.entries * row, head.entry_bits) ? HTPW_OK : HTPW_ERR_DATA
                    : error;
        }
    }
    return error == HTPW_OK && r.left != 0 ? HTPW_ERR_DATA : error;
}
