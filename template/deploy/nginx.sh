#!/bin/sh
# Starts nginx in its container, and reloads it whenever there is another certificate.
set -u

configuration=/etc/proxy/nginx.conf

certificates() { cat /etc/letsencrypt/live/*/fullchain.pem 2>/dev/null | cksum; }

follow() {
    served=$(certificates)
    while sleep 5; do
        found=$(certificates)
        [ "$found" != "$served" ] || continue
        # Certificate and key are replaced one after the other: what does not fit yet is tried again.
        if nginx -q -t -c "$configuration" && nginx -c "$configuration" -s reload; then
            served=$found
            echo "nginx.sh: reloaded, the certificate changed" >&2
        fi
    done
}

# A socket that a killed nginx left would stop the next one.
rm -f /tmp/health.sock
follow &
exec nginx -e stderr -c "$configuration" -g 'daemon off;'
