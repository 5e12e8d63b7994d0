/* Input and output through semihosting: the debugger, or QEMU, performs what r0 and r1 ask for. */
#include "app.h"

static uint32_t app_semihost(uint32_t operation, const void *arguments) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void app_print(const char *text) { (void)app_semihost(0x04, text); }

void app_print_int(int32_t value) {
    char text[13];
    uint32_t rest = value < 0 ? 0u - (uint32_t)value : (uint32_t)value, at = sizeof text;
    text[--at] = '\0';
    do {
        text[--at] = (char)('0' + rest % 10u);
        rest /= 10u;
    } while (rest != 0);
    if (value < 0) {
        text[--at] = '-';
    }
    text[--at] = ' ';
    app_print(text + at);
}

void app_print_hex(uint32_t value) {
    char text[12];
    text[0] = ' ';
    text[1] = '0';
    text[2] = 'x';
    for (int i = 0; i < 8; i++) {
        text[3 + i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15u];
    }
    text[11] = '\0';
    app_print(text);
}

void app_exit(uint32_t status) {
    /* "the application ended by itself", or any other reason: cores of 32 bits have no status to give */
    (void)app_semihost(0x18, (const void *)(uintptr_t)(status == 0 ? 0x20026u : 0x20023u));
    for (;;) {
    }
}

static uint32_t app_length(const char *text) {
    uint32_t n = 0;
    while (text[n] != '\0') {
        n++;
    }
    return n;
}

uint32_t app_open(const char *name, int to_write) {
    const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, to_write ? 5u : 1u, app_length(name)};
    return app_semihost(0x01, arguments);
}

uint32_t app_read(uint32_t file, void *to, uint32_t bytes) {
    const uint32_t arguments[3] = {file, (uint32_t)(uintptr_t)to, bytes};
    const uint32_t left = app_semihost(0x06, arguments);
    return left <= bytes ? bytes - left : 0u;
}

void app_write(uint32_t file, const void *from, uint32_t bytes) {
    const uint32_t arguments[3] = {file, (uint32_t)(uintptr_t)from, bytes};
    (void)app_semihost(0x05, arguments);
}

uint32_t app_option(const char *name, uint32_t otherwise) {
    static char line[160];
    const uint32_t arguments[2] = {(uint32_t)(uintptr_t)line, sizeof line};
    if (app_semihost(0x15, arguments) != 0) {
        return otherwise;
    }
    for (uint32_t at = 0; at < sizeof line && line[at] != '\0'; at++) {
        uint32_t n = 0, value = 0;
        while (name[n] != '\0' && at + n < sizeof line && line[at + n] == name[n]) {
            n++;
        }
        if ((at == 0 || line[at - 1] == ' ') && name[n] == '\0' && at + n < sizeof line && line[at + n] == '=') {
            for (n++; at + n < sizeof line && line[at + n] >= '0' && line[at + n] <= '9'; n++) {
                value = 10u * value + (uint32_t)(line[at + n] - '0');
            }
            return value;
        }
    }
    return otherwise;
}
