/* The rules: an erase block becomes 0xFF as a whole; a page is programmed as a whole, once between two erasures. An operation that
 * the power cut meets is done by half: pages hold a part of what they should and a byte that is neither, blocks are erased in part. */
#include "htpw_fake_flash.h"

/* 1 if the operation may go on to `bytes`; else how much of it is done before the power fails. */
static int htpw_fake_begin(struct htpw_fake_flash *f, uint32_t *bytes) {
    if (f->operations++ == f->cut_at) {
        f->is_off = 1;
        *bytes /= 2u;
    }
    return !f->is_off;
}

static int htpw_fake_erase(void *user, uint32_t offset) {
    struct htpw_fake_flash *f = (struct htpw_fake_flash *)user;
    uint32_t bytes = f->erase_bytes;
    if (f->is_off) {
        return -1;
    }
    if (offset % f->erase_bytes != 0 || offset >= f->bytes) {
        f->violations++;
        return -1;
    }
    const int whole = htpw_fake_begin(f, &bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        f->memory[offset + i] = 0xFF;
    }
    return whole ? 0 : -1;
}

static int htpw_fake_program(void *user, uint32_t offset, const uint8_t *page) {
    struct htpw_fake_flash *f = (struct htpw_fake_flash *)user;
    uint32_t bytes = f->page_bytes, is_blank = offset % f->page_bytes == 0 && offset < f->bytes;
    if (f->is_off) {
        return -1;
    }
    for (uint32_t i = 0; is_blank && i < bytes; i++) {
        is_blank = f->memory[offset + i] == 0xFF;
    }
    if (!is_blank) {
        f->violations++;
        return -1;
    }
    const int whole = htpw_fake_begin(f, &bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        f->memory[offset + i] = page[i];
    }
    if (!whole) { /* the byte at which the charge pump died: some of its bits only */
        f->memory[offset + bytes] = (uint8_t)(page[bytes] | 0x55u);
    }
    return whole ? 0 : -1;
}

void htpw_fake_flash_open(struct htpw_fake_flash *fake, uint8_t *memory, uint32_t bytes, uint32_t page_bytes,
                          uint32_t erase_bytes, uint8_t *page, struct htpw_flash *flash) {
    fake->memory = memory;
    fake->bytes = bytes;
    fake->page_bytes = page_bytes;
    fake->erase_bytes = erase_bytes;
    fake->operations = fake->violations = 0;
    fake->cut_at = HTPW_FAKE_FLASH_NO_CUT;
    fake->is_off = 0;
    flash->base = memory;
    flash->bytes = bytes;
    flash->page_bytes = page_bytes;
    flash->erase_bytes = erase_bytes;
    flash->page = page;
    flash->user = fake;
    flash->erase = htpw_fake_erase;
    flash->program = htpw_fake_program;
}

void htpw_fake_flash_power(struct htpw_fake_flash *fake, uint32_t cut_at) {
    fake->operations = 0;
    fake->cut_at = cut_at;
    fake->is_off = 0;
}
