package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Backup writes a backup of the node's state to w, encrypted for age recipients. It is not tried again: after an error, what
// w has got is no backup.
func (c *Client) Backup(ctx context.Context, recipients []string, w io.Writer) error {
	res, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/backup", query: url.Values{"recipient": recipients}}, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		if err != nil {
			return fmt.Errorf("the answer was cut off: %w", err)
		}
		return problemOf(res, b)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("the backup was cut off: %w", err)
	}
	return nil
}
