package client

import (
	"context"
	"io"
	"net/url"
)

// Backup writes a backup of the node's state to w, encrypted for age recipients. It is not tried again: after an error, what
// w has got is no backup.
func (c *Client) Backup(ctx context.Context, recipients []string, w io.Writer) error {
	return c.download(ctx, "/v1/backup", url.Values{"recipient": recipients}, w)
}
