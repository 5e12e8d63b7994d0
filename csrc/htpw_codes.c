/* Code packs: new codes and requantisation for an image that stays where it is (docs/SPEC.md 10), and two slots of flash for them. */
#include "htpw_flash.h"

enum { HTPW_PACK_HEADER = 52, HTPW_PACK_ENTRY = 8, HTPW_PACK_FORMAT = 1 };

int htpw_pack_part(const struct htpw_model *model, struct htpw_cursor *cursor, uint32_t part, uint32_t length,
                   const uint8_t **data) {
    /* Entries ascend; those of one operator are asked for in the order QUAN, CODE, so both are looked at. */
    for (uint32_t at = cursor->pack; model->pack.length - at >= HTPW_PACK_ENTRY;) {
        const uint8_t *entry = model->pack.data + at;
        const uint32_t bytes = htpw_load_u32(entry + 4);
        if (entry[0] != cursor->index || entry[1] > HTPW_PART_QUAN) {
            return HTPW_OK;
        }
        if (bytes > model->pack.length - at - HTPW_PACK_ENTRY) {
            return HTPW_ERR_PACK;
        }
        if (entry[1] == part) {
            *data = entry + HTPW_PACK_ENTRY;
            return bytes == length ? HTPW_OK : HTPW_ERR_PACK;
        }
        at += HTPW_PACK_ENTRY + ((bytes + 3u) & ~UINT32_C(3));
        if (at > model->pack.length) {
            return HTPW_ERR_PACK;
        }
    }
    return HTPW_OK;
}

/* Steps over the entries of the operator that has been decoded; each must have been one of its parts, in order. */
int htpw_pack_step(const struct htpw_model *model, struct htpw_cursor *cursor, const struct htpw_op *op) {
    int last = -1;
    while (model->pack.length - cursor->pack >= HTPW_PACK_ENTRY) {
        const uint8_t *entry = model->pack.data + cursor->pack;
        const uint32_t bytes = htpw_load_u32(entry + 4), room = (bytes + 3u) & ~UINT32_C(3);
        if (entry[0] != op->index) {
            break;
        }
        const int has = entry[1] == HTPW_PART_QUAN ? op->weight_count != 0 : op->source >= HTPW_SOURCE_DENSE;
        if (entry[1] <= last || entry[1] > HTPW_PART_QUAN || entry[2] != 0 || entry[3] != 0 || !has ||
            bytes > model->pack.length || room > model->pack.length - cursor->pack - HTPW_PACK_ENTRY) {
            return HTPW_ERR_PACK;
        }
        for (uint32_t i = bytes; i < room; i++) {
            if (entry[HTPW_PACK_ENTRY + i] != 0) {
                return HTPW_ERR_PACK;
            }
        }
        last = entry[1];
        cursor->pack += HTPW_PACK_ENTRY + room;
    }
    return HTPW_OK;
}

/* Header and checksum of a pack; `length` may be longer than the pack (a slot). */
static HTPW_COLD int htpw_pack_header(const uint8_t *p, size_t length, uint32_t *bytes) {
    static const uint8_t magic[4] = {'H', 'T', 'P', 'C'};
    if (length < HTPW_PACK_HEADER) {
        return HTPW_ERR_PACK;
    }
    for (uint32_t i = 0; i < 4; i++) {
        if (p[i] != magic[i]) {
            return HTPW_ERR_PACK;
        }
    }
    *bytes = htpw_load_u32(p + 8);
    if (p[4] != HTPW_PACK_FORMAT || p[5] != 0 || *bytes < HTPW_PACK_HEADER || *bytes % 4 != 0 || *bytes > length) {
        return HTPW_ERR_PACK;
    }
    const uint32_t crc = htpw_crc32(htpw_crc32(0, p, 48), p + HTPW_PACK_HEADER, *bytes - HTPW_PACK_HEADER);
    return crc == htpw_load_u32(p + 48) ? HTPW_OK : HTPW_ERR_PACK;
}

/* Applies a pack that may be followed by something else. */
static HTPW_COLD int htpw_pack_apply(struct htpw_model *model, const uint8_t *p, size_t length) {
    uint8_t digest[HTPW_SHA256_BYTES];
    uint32_t bytes, entries = 0;
    int error = htpw_pack_header(p, length, &bytes);
    if (error != HTPW_OK) {
        return error;
    }
    htpw_sha256(model->image, model->image_bytes, digest);
    for (uint32_t i = 0; i < HTPW_SHA256_BYTES; i++) {
        if (digest[i] != p[16u + i]) {
            return HTPW_ERR_BASE;
        }
    }
    if (htpw_load_u32(p + 12) < model->pack_number) {
        return HTPW_ERR_NUMBER;
    }
    struct htpw_model changed = *model;
    changed.pack.data = p + HTPW_PACK_HEADER;
    changed.pack.length = bytes - HTPW_PACK_HEADER;
    changed.pack_number = htpw_load_u32(p + 12);
    changed.pack_crc = htpw_load_u32(p + 48);
    error = htpw_operators_check(&changed);
    for (uint32_t at = 0; error == HTPW_OK && at < changed.pack.length;
         entries++) { /* operators_check has measured them */
        at += HTPW_PACK_ENTRY + ((htpw_load_u32(changed.pack.data + at + 4) + 3u) & ~UINT32_C(3));
    }
    if (error == HTPW_OK && (entries == 0 || entries != htpw_load_u16(p + 6))) {
        error = HTPW_ERR_PACK;
    }
    if (error == HTPW_OK) {
        *model = changed;
    }
    return error;
}

int htpw_codes_apply(struct htpw_model *model, const void *pack, size_t length) {
    if (!HTPW_WITH(PACKS)) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_PACKS);
    }
    if (model == NULL || model->image == NULL || pack == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    const uint8_t *p = (const uint8_t *)pack;
    if (length >= 12 && htpw_load_u32(p + 8) != length) {
        return HTPW_ERR_PACK;
    }
    return htpw_pack_apply(model, p, length);
}

/* ---- two slots ---- */

static uint32_t htpw_slot_bytes(const struct htpw_flash *f) { return f->bytes / f->erase_bytes / 2u * f->erase_bytes; }

/* The slot with the newest pack that can be applied to `model`, which then has been; -1 if there is none. */
static int htpw_slot_newest(struct htpw_model *model, const struct htpw_flash *f) {
    const uint32_t bytes = htpw_slot_bytes(f);
    int newest = -1;
    for (int i = 0; i < 2; i++) {
        struct htpw_model changed = *model;
        if (htpw_pack_apply(&changed, f->base + (uint32_t)i * bytes, bytes) == HTPW_OK &&
            (newest < 0 || changed.pack_number > model->pack_number)) {
            *model = changed;
            newest = i;
        }
    }
    return newest;
}

/* Arguments of the functions below, and the model without any pack. */
static int htpw_slots_open(const struct htpw_model *model, const struct htpw_flash *flash, struct htpw_model *base) {
    if (!HTPW_WITH(PACKS)) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_PACKS);
    }
    if (model == NULL || model->image == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    if (!htpw_flash_is_valid(flash) || htpw_slot_bytes(flash) == 0) {
        return HTPW_ERR_FLASH;
    }
    *base = *model;
    base->pack.length = 0;
    base->pack_number = base->pack_crc = 0;
    return HTPW_OK;
}

int htpw_codes_boot(struct htpw_model *model, const struct htpw_flash *flash) {
    struct htpw_model base;
    const int error = htpw_slots_open(model, flash, &base);
    if (error == HTPW_OK) {
        (void)htpw_slot_newest(&base, flash);
        *model = base;
    }
    return error;
}

int htpw_codes_store(const struct htpw_model *model, const struct htpw_flash *flash, const void *pack, size_t length) {
    struct htpw_model base;
    int error = htpw_slots_open(model, flash, &base);
    if (error != HTPW_OK) {
        return error;
    }
    const int newest = htpw_slot_newest(&base, flash);
    const uint32_t number = base.pack_number;
    error = htpw_codes_apply(&base, pack, length); /* refuses a number below that of the newest */
    if (error == HTPW_OK && newest >= 0 && base.pack_number == number) {
        error = HTPW_ERR_NUMBER; /* of two with one number nobody could say which is meant */
    }
    if (error != HTPW_OK) {
        return error;
    }
    const uint32_t bytes = htpw_slot_bytes(flash), first = newest == 0 ? bytes : 0u;
    if (length > bytes) {
        return HTPW_ERR_FLASH;
    }
    error = htpw_flash_erase(flash, first, first + bytes);
    for (uint32_t at = 0; error == HTPW_OK && at < length; at += flash->page_bytes) {
        for (uint32_t i = 0; i < flash->page_bytes; i++) {
            flash->page[i] = at + i < length ? ((const uint8_t *)pack)[at + i] : 0xFFu;
        }
        error = htpw_flash_program(flash, first + at);
    }
    return error;
}

int htpw_codes_rollback(const struct htpw_model *model, const struct htpw_flash *flash) {
    struct htpw_model base;
    const int error = htpw_slots_open(model, flash, &base);
    if (error != HTPW_OK) {
        return error;
    }
    const int newest = htpw_slot_newest(&base, flash);
    if (newest < 0) {
        return HTPW_ERR_STORE;
    }
    const uint32_t first = (uint32_t)newest * htpw_slot_bytes(flash);
    return htpw_flash_erase(flash, first, first + htpw_slot_bytes(flash));
}
