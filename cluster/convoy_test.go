package cluster

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestConvoy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &convoy{max: 1}
		first, err := c.join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Three come while the first is on the way; one of them gives up.
		impatient, giveUp := context.WithCancel(t.Context())
		var mu sync.Mutex
		var set, gone int
		var groups []*group
		for i := range 3 {
			ctx := t.Context()
			if i == 1 {
				ctx = impatient
			}
			go func() {
				g, err := c.join(ctx)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					gone++
					return
				}
				set++
				groups = append(groups, g)
			}()
		}
		synctest.Wait()
		if set != 0 {
			t.Fatalf("%d set out before the first arrived", set)
		}
		giveUp()
		synctest.Wait()
		c.arrive(first)
		synctest.Wait()
		if set != 2 || gone != 1 || groups[0] != groups[1] {
			t.Fatalf("%d set out, %d gave up, want 2 together and 1", set, gone)
		}
		// The next waits for both.
		last := make(chan *group, 1)
		go func() {
			g, err := c.join(t.Context())
			if err != nil {
				t.Error(err)
			}
			last <- g
		}()
		synctest.Wait()
		c.arrive(groups[0])
		synctest.Wait()
		if len(last) != 0 {
			t.Fatal("the next set out before the whole group arrived")
		}
		c.arrive(groups[1])
		c.arrive(<-last)
		if c.groups != 0 {
			t.Errorf("%d groups on the way after all arrived", c.groups)
		}
		// Nobody waits when the group on the way arrives, and everybody who waited has given up.
		again, err := c.join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.join(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("join with an ended context: %v", err)
		}
		c.arrive(again)
		if g, err := c.join(t.Context()); err != nil || c.groups != 1 {
			t.Errorf("the way is not free: %+v, %v", g, err)
		}
	})
}

func TestConvoyGathers(t *testing.T) {
	const wait = time.Millisecond
	for _, members := range []int{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			c := &convoy{max: 1, large: 3, wait: wait}
			first, err := c.join(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			set := make(chan *group, members)
			join := func() {
				g, err := c.join(t.Context())
				if err != nil {
					t.Error(err)
				}
				set <- g
			}
			for range members {
				go join()
			}
			synctest.Wait()
			c.arrive(first) // alone: those who waited set out at once
			synctest.Wait()
			if len(set) != members {
				t.Fatalf("%d of %d set out after a small group", len(set), members)
			}
			for range members {
				c.arrive(<-set)
			}
			// The next meets a way that is free, or waits together with the one behind it.
			begin := time.Now()
			go join()
			synctest.Wait()
			go join()
			one, want := <-set, time.Duration(0)
			if members == 3 {
				want = wait
			}
			if waited := time.Since(begin); waited != want {
				t.Errorf("after a group of %d the next waited %v, want %v", members, waited, want)
			}
			c.arrive(one)
			two := <-set
			if together := one == two; together != (members == 3) {
				t.Errorf("after a group of %d the next two set out together: %t", members, together)
			}
			c.arrive(two)
			if time.Sleep(2 * wait); c.groups != 0 {
				t.Errorf("%d groups on the way after all arrived", c.groups)
			}
		})
	}
}
