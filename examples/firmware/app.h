/* app.h - what the parts of the example firmware share. */
#ifndef APP_H
#define APP_H

#include <stddef.h>
#include <stdint.h>

int app_main(void);

/* console.c: the host, through semihosting. A product puts its UART here. */
void app_print(const char *text);
void app_print_int(int32_t value); /* with a space in front */
void app_print_hex(uint32_t value);
void app_exit(uint32_t status) __attribute__((noreturn));
uint32_t app_open(const char *name, int to_write); /* 0xFFFFFFFF if there is none */
uint32_t app_read(uint32_t file, void *to, uint32_t bytes); /* bytes that were read */
void app_write(uint32_t file, const void *from, uint32_t bytes);
uint32_t app_option(const char *name, uint32_t otherwise); /* name=123 of the command line */

/* startup.c */
void app_system_reset(void) __attribute__((noreturn));
void app_stack_paint(void);
uint32_t app_sp(void);
uint32_t app_stack_used(uint32_t sp); /* bytes below sp since the last painting */
uint32_t app_stack_peak(void);        /* bytes since the start */

/* Called between windows; a product kicks its watchdog or sleeps. Weak, does nothing. */
void app_between_windows(uint32_t window);

#endif
