/* htpw_flash.h - what the kernel store and the slots of code packs share: careful erasing and programming. */
#ifndef HTPW_FLASH_H
#define HTPW_FLASH_H

#include "htpw_internal.h"

#define HTPW_FLASH_UNIT_MAX (UINT32_C(1) << 24) /* bytes of a page or erase block */

static inline void htpw_store_u32(uint8_t *p, uint32_t v) {
    for (uint32_t i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8u * i));
    }
}

/* 1 if the geometry is possible and nothing is missing. */
int htpw_flash_is_valid(const struct htpw_flash *f);

/* Erases the blocks that hold from .. to - 1, those that are erased already left alone. Errors: FLASH. */
int htpw_flash_erase(const struct htpw_flash *f, uint32_t from, uint32_t to);

/* Programs f->page at `at` and reads it back. Errors: FLASH. */
int htpw_flash_program(const struct htpw_flash *f, uint32_t at);

#endif
