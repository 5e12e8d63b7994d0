/* htpw_fake_flash.h - a flash made of RAM that enforces the rules of a real one: the reference for writing your own driver, and what
 * the tests cut the power of. */
#ifndef HTPW_FAKE_FLASH_H
#define HTPW_FAKE_FLASH_H

#include "../htpw.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HTPW_FAKE_FLASH_NO_CUT 0xFFFFFFFFu

struct htpw_fake_flash {
    uint8_t *memory;
    uint32_t bytes, page_bytes, erase_bytes;
    uint32_t operations; /* erasures and programmings begun */
    uint32_t cut_at; /* the operation in which the power fails, counted from 0; HTPW_FAKE_FLASH_NO_CUT for none */
    uint32_t violations; /* pages programmed twice, or places outside: refused */
    uint8_t is_off; /* the power has failed: nothing works until htpw_fake_flash_power */
};

/* Makes `memory`, `bytes` long and 4-byte aligned, a flash, with its content as it is, and fills in what the library wants of it. `page` is
 * page_bytes of RAM, 4-byte aligned. All belong to the caller. */
void htpw_fake_flash_open(struct htpw_fake_flash *fake, uint8_t *memory, uint32_t bytes, uint32_t page_bytes,
                          uint32_t erase_bytes, uint8_t *page, struct htpw_flash *flash);

/* Power on again; the power fails in operation `cut_at` from now. */
void htpw_fake_flash_power(struct htpw_fake_flash *fake, uint32_t cut_at);

#ifdef __cplusplus
}
#endif
#endif
