#!/bin/sh
# Removes what install.sh made. Data stays: /var/lib/vnp, /etc/vnp, the user and the group.
# Usage: uninstall.sh DESTDIR PREFIX
set -eu
dest=$1 prefix=$2
live=; [ -z "$dest" ] && [ -d /run/systemd/system ] && live=yes
[ -z "$live" ] || systemctl disable --quiet --now vnp.target vnp.service vnp-cpu.service vnp-gpu.service vnp-redis.service
for unit in vnp.service vnp@.service vnp-cpu.service vnp-gpu.service vnp-redis.service vnp.target; do
	rm -f "$dest/usr/lib/systemd/system/$unit"
done
rm -f "$dest/usr/lib/sysusers.d/vnp.conf" "$dest/usr/lib/tmpfiles.d/vnp.conf"
for name in vnp vnp-submit; do
	[ "$(readlink "$dest/usr/local/bin/$name" || true)" != "$prefix/bin/$name" ] || rm -f "$dest/usr/local/bin/$name"
done
rm -rf "$dest$prefix/venv" "$dest$prefix/share/doc/vnp"
for name in vnp vnpd vnp-submit vnp-redis; do rm -f "$dest$prefix/bin/$name"; done
rmdir -p --ignore-fail-on-non-empty "$dest$prefix/bin" "$dest$prefix/share/doc" 2>/dev/null || true
[ -z "$live" ] || systemctl daemon-reload
echo "vnp is removed; /var/lib/vnp and /etc/vnp are as they were"
