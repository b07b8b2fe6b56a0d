#!/bin/sh
# Makes a root disk of Debian packages in the folder $1: root.ext4, the kernel and initrd of it, and a key for ssh. What
# is put beside the packages is what Debian's own cloud images have as well: a root in fstab, DHCP on every card until
# cloud-init says otherwise, no periodic jobs. Beyond that, root may log in with the key.
set -eu
out=$1
here=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$here"' EXIT
mirror=http://deb.debian.org/debian

ssh-keygen -q -t ed25519 -N '' -C minivmm-tests -f "$out/key"

# Runs in the new root's place, as its owner.
cat >"$here/finish" <<'END'
#!/bin/sh
set -eu
root=$1
echo 'LABEL=minivmm / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
cat >"$root/etc/netplan/90-default.yaml" <<'YAML'
network:
  version: 2
  ethernets:
    all-en: {match: {name: "en*"}, dhcp4: true}
YAML
chmod 600 "$root/etc/netplan/90-default.yaml"
# kexec-tools would have each reboot load a kernel instead.
sed -i s/LOAD_KEXEC=true/LOAD_KEXEC=false/ "$root/etc/default/kexec"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo debian >"$root/etc/hostname"
mkdir -m 700 -p "$root/root/.ssh"
cp "$MINIVMM_KEY.pub" "$root/root/.ssh/authorized_keys"
END
chmod +x "$here/finish"

MINIVMM_KEY=$out/key mmdebstrap --quiet --variant=minbase --format=tar \
    --include=linux-image-6.12-cloud-amd64,initramfs-tools,systemd-sysv,systemd-resolved,udev,dbus,sudo,openssh-server \
    --include=cloud-init,netplan.io,kexec-tools,iproute2 \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --customize-hook="$here/finish \"\$1\"" \
    bookworm "$here/root.tar" \
    "deb $mirror bookworm main" "deb $mirror bookworm-updates main" "deb $mirror-security bookworm-security main"

# An owner of files that is not root needs a user namespace for it.
as_owner() { if [ "$(id -u)" = 0 ]; then "$@"; else unshare --map-root-user --map-auto "$@"; fi; }
# shellcheck disable=SC2016  # for the inner shell
as_owner sh -euc 'mkdir "$1/root"; tar -xf "$1/root.tar" -C "$1/root"
    mkfs.ext4 -q -F -b 4096 -L minivmm -m 0 -d "$1/root" "$1/root.ext4" 2G
    cp "$1"/root/boot/vmlinuz-* "$1/vmlinuz"; cp "$1"/root/boot/initrd.img-* "$1/initrd"; rm -rf "$1/root"' sh "$here"
mv "$here/root.ext4" "$here/vmlinuz" "$here/initrd" "$out"
