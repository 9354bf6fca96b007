/* mailbox.c - post, and take everything.
 * Owns: the mails between post and delivery.   Threads: post any; run the owner.
 * Idea: senders only push and the owner only takes the whole stack, so the compare-and-swap cannot
 * be fooled by a mail that left and came back (no ABA): no sender ever looks into a mail of
 * another. A ring per pair of threads would keep order without the turning, but needs a bound. */
#include "base/mailbox.h"

void prt_mailbox_init(struct prt_mailbox *box, void *owner, void (*wake)(void *owner))
{
    atomic_init(&box->top, NULL);
    box->owner = owner;
    box->wake = wake;
}

void prt_mailbox_post(struct prt_mailbox *box, struct prt_mail *mail)
{
    /* taken first: once pushed, the mail may be delivered and its object gone, box included */
    void (*wake)(void *) = box->wake;
    void *owner = box->owner;
    struct prt_mail *top = atomic_load_explicit(&box->top, memory_order_relaxed);

    do {
        mail->next = top;
        /* release pairs with the acquire of take_all: the mail is written before it is seen */
    } while (!atomic_compare_exchange_weak_explicit(&box->top, &top, mail, memory_order_release,
                                                    memory_order_relaxed));
    if (!top) {
        wake(owner);
    }
}

/* all mails, the oldest first */
static struct prt_mail *take_all(struct prt_mailbox *box)
{
    /* acquire pairs with the release of every push: pushes are read-modify-writes, so the last
     * one stands for those below it */
    struct prt_mail *at = atomic_exchange_explicit(&box->top, NULL, memory_order_acquire);
    struct prt_mail *turned = NULL;

    while (at) {
        struct prt_mail *below = at->next;
        at->next = turned;
        turned = at;
        at = below;
    }
    return turned;
}

int prt_mailbox_run(struct prt_mailbox *box)
{
    int n = 0;

    for (struct prt_mail *at = take_all(box), *next; at; at = next) {
        next = at->next; /* deliver may post the mail again, or free it */
        at->deliver(box->owner, at);
        n++;
    }
    return n;
}
