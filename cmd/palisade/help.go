package main

// The examples of the commands, below what their flags are called. Kong keeps indented lines as they are.

// Help implements kong.HelpProvider.
func (*BlockAddCmd) Help() string {
	return `Examples:

    palisade block add web --reason abuse --wait
    palisade block add web --port tcp/25 --direction out --reason abuse
    palisade block add 192.0.2.7 --rate 10mbit --direction in --for 2h
    palisade block add acct-42 --account --kind redirect --reason unpaid --at +3d
    palisade block add feed --list --direction out --reason attack --dry-run`
}

// Help implements kong.HelpProvider.
func (*BlockLiftCmd) Help() string {
	return `Examples:

    palisade block lift b17 b18 --wait
    palisade block lift web --reason unpaid
    palisade block lift acct-42 --account --reason unpaid`
}

// Help implements kong.HelpProvider.
func (*BlockEditCmd) Help() string {
	return `Examples:

    palisade block edit b17 --at +10d --for 28d
    palisade block edit b17 --no-end --note 'until further notice'`
}

// Help implements kong.HelpProvider.
func (*BlockBulkCmd) Help() string {
	return `A file with three lines:

    {"target":{"vm":"web"},"reason":"abuse","duration":"7d"}
    {"lift":{"id":"b17"}}
    {"patch":{"id":"b18","note":"appealed"}}`
}

// Help implements kong.HelpProvider.
func (*VMSetCmd) Help() string {
	return `Examples:

    palisade vm set vm101 --owner acct-42
    palisade vm set vm101 --address 192.0.2.7 --address 2001:db8:1::/64`
}

// Help implements kong.HelpProvider.
func (*AccountSetCmd) Help() string {
	return `Example:

    palisade account set acct-42 --do-not-block-until +14d --note 'promised to pay'`
}

// Help implements kong.HelpProvider.
func (*ListPutCmd) Help() string {
	return `Examples:

    palisade list put feed feed.txt --dry-run
    zcat feed.txt.gz | palisade list put feed -`
}

// Help implements kong.HelpProvider.
func (*ListPatchCmd) Help() string {
	return `Example:

    palisade list patch feed --add 198.51.100.7 --remove 192.0.2.128/25`
}

// Help implements kong.HelpProvider.
func (*ListSourceCmd) Help() string {
	return `Examples:

    palisade list source feed https://lists.example/feed.txt --interval 1h
    palisade list source feed file:///var/lib/palisade/lists/feed.txt
    palisade list source feed --none`
}

// Help implements kong.HelpProvider.
func (*GuardAddCmd) Help() string {
	return `Examples:

    palisade guard add 192.0.2.53 --note resolver
    palisade guard add --vm web --note 'our own shop'`
}

// Help implements kong.HelpProvider.
func (*SettingsSetCmd) Help() string {
	return `Examples:

    palisade settings set --max-vms 50
    palisade settings set --redirect-title 'Payment needed' --redirect-link https://pay.example/`
}

// Help implements kong.HelpProvider.
func (*InitCmd) Help() string {
	return `Only on the first node; the others join. Example:

    palisade init --zone rack-1`
}

// Help implements kong.HelpProvider.
func (*JoinCmd) Help() string {
	return `The token comes from a member: palisade join-token create. Examples:

    palisade join 10.0.0.1:7420 --token-file kvm7.join
    palisade join 10.0.0.1 --token-file - --zone rack-2

A node that was away until its certificate ended gets a new one in the same way, with a token made with --again.`
}

// Help implements kong.HelpProvider.
func (*JoinTokenCreateCmd) Help() string {
	return `The token is all that is printed to the output. Examples:

    palisade join-token create
    palisade join-token create --node kvm7 --zone rack-2 --ttl 1h
    palisade join-token create --node kvm7 --again

With --again, kvm7 was away until its certificate ended, and goes on as the node that it was.`
}

// Help implements kong.HelpProvider.
func (*CAShowCmd) Help() string {
	return `Examples:

    palisade ca show
    palisade ca show --pem`
}

// Help implements kong.HelpProvider.
func (*CARotateCmd) Help() string {
	return `Every node renews its certificate by itself; then the old authority ends. Example:

    palisade ca rotate --wait 5m`
}

// Help implements kong.HelpProvider.
func (*GossipKeyRotateCmd) Help() string {
	return `Example:

    palisade gossip-key rotate --wait 1m`
}

// Help implements kong.HelpProvider.
func (*TokenCreateCmd) Help() string {
	return `The secret is all that is printed. Examples:

    palisade token create billing --scope billing --expires +365d
    palisade --server https://192.0.2.1:8440 --token-file billing.token block ls`
}

// Help implements kong.HelpProvider.
func (*UserAddCmd) Help() string {
	return `Examples:

    palisade user add ann --scope operator
    palisade user add bob --scope viewer --password-file -`
}

// Help implements kong.HelpProvider.
func (*SessionRmCmd) Help() string {
	return `Examples:

    palisade session rm sk3v7q2m5xw4zr6a
    palisade session rm --user ann`
}

// Help implements kong.HelpProvider.
func (*ExplainCmd) Help() string {
	return `Examples:

    palisade explain --src 192.0.2.7 --dst 203.0.113.9 --port 25
    palisade explain --vm web`
}

// Help implements kong.HelpProvider.
func (*AuditLsCmd) Help() string {
	return `Examples:

    palisade audit ls --object b17
    palisade audit ls --actor token:billing --action block.lift --limit 10`
}

// Help implements kong.HelpProvider.
func (*AuditVerifyCmd) Help() string {
	return `Examples:

    palisade audit verify
    palisade audit export audit.jsonl && palisade audit verify audit.jsonl`
}
