/* The image, in flash, aligned to 16 bytes. The include path says which model.htpw. */
    .syntax unified
    .section .rodata.htpw_image, "a", %progbits
    .balign 16
    .global app_image
    .type app_image, %object
app_image:
    .incbin "model.htpw"
    .size app_image, . - app_image
