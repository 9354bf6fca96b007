/* base_mailbox_test.c - mail between threads: nothing lost, order per sender, one wake per filling.
 * Run it under the thread sanitizer too (VARIANT=tsan). */
#include "base/mailbox.h"
#include "test.h"

#include <pthread.h>
#include <semaphore.h>
#include <time.h>

struct letter {
    int number;
    int again; /* posts itself so many times more */
    struct prt_mail mail;
};

struct box {
    struct prt_mailbox box;
    int wakes;
    int seen[16], n;
};

static void count_wake(void *owner)
{
    ((struct box *)owner)->wakes++;
}

static void note(void *owner, struct prt_mail *mail)
{
    struct box *b = owner;
    struct letter *l = prt_container_of(mail, struct letter, mail);

    b->seen[b->n++] = l->number;
    if (l->again) {
        l->again--;
        prt_mailbox_post(&b->box, mail);
    }
}

TEST(an_empty_box_delivers_nothing)
{
    struct box b = {.n = 0};

    prt_mailbox_init(&b.box, &b, count_wake);
    CHECK_INT(prt_mailbox_run(&b.box), 0);
    CHECK_INT(b.wakes, 0);
}

TEST(mail_arrives_in_order_and_only_the_first_wakes)
{
    struct box b = {.n = 0};
    struct letter l[5];

    prt_mailbox_init(&b.box, &b, count_wake);
    for (int round = 1; round <= 2; round++) {
        b.n = 0;
        for (int i = 0; i < 5; i++) {
            l[i] = (struct letter){.number = i, .mail.deliver = note};
            prt_mailbox_post(&b.box, &l[i].mail);
        }
        CHECK_INT(b.wakes, round);
        CHECK_INT(prt_mailbox_run(&b.box), 5);
        for (int i = 0; i < 5; i++) {
            CHECK_INT(b.seen[i], i);
        }
    }
}

TEST(mail_posted_while_delivering_comes_with_the_next_run_and_wakes)
{
    struct box b = {.n = 0};
    struct letter one = {.number = 1, .again = 2, .mail.deliver = note};
    struct letter two = {.number = 2, .mail.deliver = note};

    prt_mailbox_init(&b.box, &b, count_wake);
    prt_mailbox_post(&b.box, &one.mail);
    prt_mailbox_post(&b.box, &two.mail);
    CHECK_INT(prt_mailbox_run(&b.box), 2);
    CHECK_INT(b.wakes, 2);
    CHECK_INT(prt_mailbox_run(&b.box), 1);
    CHECK_INT(b.wakes, 3);
    CHECK_INT(prt_mailbox_run(&b.box), 1);
    CHECK_INT(prt_mailbox_run(&b.box), 0);
    CHECK_INT(b.wakes, 3);
    CHECK_INT(b.seen[0], 1);
    CHECK_INT(b.seen[1], 2);
    CHECK_INT(b.seen[2], 1);
    CHECK_INT(b.seen[3], 1);
}

static void free_it(void *owner, struct prt_mail *mail)
{
    ((struct box *)owner)->n++;
    free(prt_container_of(mail, struct letter, mail));
}

TEST(delivery_may_free_the_mail)
{
    struct box b = {.n = 0};

    prt_mailbox_init(&b.box, &b, count_wake);
    for (int i = 0; i < 3; i++) {
        struct letter *l = calloc(1, sizeof *l);
        l->mail.deliver = free_it;
        prt_mailbox_post(&b.box, &l->mail);
    }
    CHECK_INT(prt_mailbox_run(&b.box), 3);
    CHECK_INT(b.n, 3);
}

/* ---- many senders ---- */
enum { SENDERS = 4, LETTERS = 50000, IN_FLIGHT = 64 };

struct parcel {
    struct prt_mail mail;
    int sender, number;
    sem_t *back; /* given back to the sender, who may use it again */
};

struct hall {
    struct prt_mailbox box;
    sem_t woken;
    int next[SENDERS], out_of_order, delivered;
};

struct sender {
    struct hall *hall;
    int index;
    pthread_t thread;
};

static void wake_hall(void *owner)
{
    (void)sem_post(&((struct hall *)owner)->woken);
}

static void take_parcel(void *owner, struct prt_mail *mail)
{
    struct hall *h = owner;
    struct parcel *p = prt_container_of(mail, struct parcel, mail);

    h->out_of_order += p->number != h->next[p->sender];
    h->next[p->sender] = p->number + 1;
    h->delivered++;
    (void)sem_post(p->back);
}

/* Every mail is used again as soon as it came back. Mails come back in order, so the oldest of the
 * ring is free whenever the semaphore says that one is. */
static void *send_all(void *arg)
{
    struct sender *me = arg;
    struct parcel ring[IN_FLIGHT];
    sem_t back;

    (void)sem_init(&back, 0, IN_FLIGHT);
    for (int i = 0; i < LETTERS; i++) {
        struct parcel *p = &ring[i % IN_FLIGHT];
        while (sem_wait(&back)) {
        }
        *p = (struct parcel){{NULL, take_parcel}, me->index, i, &back};
        prt_mailbox_post(&me->hall->box, &p->mail);
    }
    for (int i = 0; i < IN_FLIGHT; i++) {
        while (sem_wait(&back)) {
        }
    }
    (void)sem_destroy(&back);
    return NULL;
}

TEST(nothing_is_lost_or_out_of_order_between_threads)
{
    static struct hall h;
    struct sender senders[SENDERS];
    struct timespec deadline;

    prt_mailbox_init(&h.box, &h, wake_hall);
    (void)sem_init(&h.woken, 0, 0);
    (void)clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){.hall = &h, .index = i};
        CHECK_INT(pthread_create(&senders[i].thread, NULL, send_all, &senders[i]), 0);
    }
    while (h.delivered < SENDERS * LETTERS) { /* sleeps whenever no wake came: a lost one hangs */
        if (sem_timedwait(&h.woken, &deadline)) {
            printf("  a wake was lost: %d delivered\n", h.delivered);
            exit(1);
        }
        CHECK(prt_mailbox_run(&h.box) > 0); /* each wake stands for mail */
    }
    for (int i = 0; i < SENDERS; i++) {
        (void)pthread_join(senders[i].thread, NULL);
        CHECK_INT(h.next[i], LETTERS);
    }
    CHECK_INT(h.out_of_order, 0);
    CHECK_INT(prt_mailbox_run(&h.box), 0);
    (void)sem_destroy(&h.woken);
}
