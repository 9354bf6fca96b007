/* mailbox.h - messages from any thread to one thread, without a lock.
 * Idea: senders push on a stack with one compare-and-swap; the owner takes the whole stack at once
 * and turns it round. The sender wakes the owner only when the box was empty. Messages are embedded
 * in the objects that travel, so posting never allocates. */
#ifndef PRT_MAILBOX_H
#define PRT_MAILBOX_H
#include "base/base.h"

struct prt_mail {
    struct prt_mail *next;
    /** Called on the owner's thread; the mail may be posted again from inside. */
    void (*deliver)(void *owner, struct prt_mail *mail);
};

struct prt_mailbox {
    _Atomic(struct prt_mail *) top;
    void *owner;               /* set at creation */
    void (*wake)(void *owner); /* set at creation; any thread, must not block */
};
void prt_mailbox_init(struct prt_mailbox *box, void *owner, void (*wake)(void *owner));
/** Takes `mail` until it is delivered. Order is kept per sender. Any thread. */
void prt_mailbox_post(struct prt_mailbox *box, struct prt_mail *mail);
/** Deliver all that is there now, in order. Owner's thread. Returns how many. */
int prt_mailbox_run(struct prt_mailbox *box);
#endif
