#!/bin/sh
# With arguments: certbot. Without: renews twice a day what is due; the proxy looks for the new certificate by itself.
set -u

run() {
    certbot --config-dir /etc/letsencrypt --work-dir /tmp/work --logs-dir /tmp/logs --non-interactive "$@"
}

if [ $# -gt 0 ]; then
    run "$@"
    exit
fi

# A shell that is process 1 ends by no signal that it does not name.
trap 'exit 0' TERM INT
while :; do
    # The container is healthy as long as this file is young.
    run renew --quiet --no-random-sleep-on-renew && touch /tmp/renewed
    sleep 12h &
    wait $!
done
