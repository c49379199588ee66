/* Prints whom it runs as: installed set-uid root it tells whether no_new_privs is in force. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
